"""Rewrite the float model: norms, activations, then any module, each offered to the techniques in turn."""

from __future__ import annotations

import copy

from torch import nn

from qplug.core.types import Change
from qplug.hooks.caller import TechniqueCaller
from qplug.models.adapters import make_explicit
from qplug.models.attention import MatMul
from qplug.models.equivalence import EquivalenceCheck
from qplug.models.explicit import unread_notes
from qplug.models.surgery import replace
from qplug.models.tracing import is_activation
from qplug.pipeline.context import RunContext
from qplug.pipeline.results import Inputs, RewrittenModel

HOOKS = ("qplug_rewrite_norm", "qplug_rewrite_activation", "qplug_rewrite_module")
"""In the order in which they are asked."""
ACTIVATIONS = frozenset("ReLU ReLU6 LeakyReLU PReLU ELU SiLU Hardswish Mish Tanh Sigmoid".split())


def rewrite(ctx: RunContext, inputs: Inputs, ask: bool = True) -> RewrittenModel:
    """A copy of the float model with its attention explicit, as the techniques rewrite it.

    Adapters come first, so that an attention's Softmax can be rewritten, and again at the end, for attention that a
    rewrite brought.

    Args:
        ctx: of the run.
        inputs: the float model, and calibration data to check rewrites on.
        ask: whether the techniques are asked; an analysis looks at a model that nothing rewrote.

    Raises:
        EquivalenceError: a rewrite that promised to preserve the function did not.
    """
    model, adapters = copy.deepcopy(inputs.float_model.module), ctx.registry.adapters
    unread: dict[str, str] = {}
    example = inputs.float_model.preprocessing.example().to(ctx.device)
    with ctx.stage("rewrite"):
        make_explicit(model, adapters, example, unread)
        equivalence = (
            EquivalenceCheck(model, inputs.probe, inputs.float_model.task) if inputs.probe is not None else None
        )
        changes = rewrite_modules(model, ctx.caller, equivalence) if ask else []
        make_explicit(model, adapters, example, unread)
    ctx.warnings += unread_notes(unread)
    rewriters = {change.technique for change in changes}
    ctx.results.identify(
        inputs.made_by,
        *(technique for technique in ctx.caller.techniques if technique.name() in rewriters),
        *(adapter.build for adapter in adapters),
        *inputs.float_model.module.modules(),
        *model.modules(),
        seed=ctx.seed,
        device=ctx.device.type,
        batch_size=inputs.batch_size,
    )
    return RewrittenModel(model, example, changes, equivalence, unread=unread)


def rewrite_modules(model: nn.Module, caller: TechniqueCaller, equivalence: EquivalenceCheck | None) -> list[Change]:
    """Ask for every module, in model order, and put what the techniques return in its place; returns what changed.

    It comes to the model's device, and wherever the model holds the module: one may bear several names.

    Promises to preserve the function are checked by ``equivalence``; ``None`` checks nothing, as when a run is loaded.

    Raises:
        EquivalenceError: a rewrite that promised to preserve the function did not.
    """
    changes: list[Change] = []
    device = next((parameter.device for parameter in model.parameters()), None)
    for hook, wanted in zip(HOOKS, (_is_norm, _is_activation, _is_other), strict=True):
        if not caller.implements(hook):
            continue
        for name, module in list(model.named_modules()):
            if not name or not wanted(module) or not _is_there(model, name, module):
                continue
            answer = caller.first(hook, name=name, module=module)
            if answer is None:
                continue
            technique, result = answer
            replace(model, module, result.module.eval().to(device))
            changes.append(Change(name, technique.name(), result.preserves, result.reason))
            if equivalence is not None:
                equivalence.check(changes[-1:])  # one by one: the promise of one holds whatever another did
    return changes


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() or type(module).__name__ == "Affine"


def _is_activation(module: nn.Module) -> bool:
    return type(module).__name__ in ACTIVATIONS or is_activation(module)


def _is_other(module: nn.Module) -> bool:
    return not (_is_norm(module) or _is_activation(module) or isinstance(module, MatMul))


def _is_there(model: nn.Module, name: str, module: nn.Module) -> bool:
    """Whether ``module`` is still in its place: an earlier rewrite may have replaced a parent of it."""
    try:
        return model.get_submodule(name) is module
    except AttributeError:
        return False
