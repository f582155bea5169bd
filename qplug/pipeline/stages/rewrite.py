"""Rewriting the float model: norms, activations, then any module, each offered to the techniques in turn."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from qplug.core.types import Change
from qplug.hooks.caller import TechniqueCaller
from qplug.models.attention import MatMul
from qplug.models.equivalence import EquivalenceCheck
from qplug.models.surgery import replace
from qplug.models.tracing import is_gelu

HOOKS = ("qplug_rewrite_norm", "qplug_bound_activation", "qplug_rewrite_module")
"""In the order in which they are asked."""
ACTIVATIONS = frozenset("ReLU ReLU6 LeakyReLU PReLU ELU SiLU Hardswish Mish Tanh Sigmoid".split())


def rewrite(model: nn.Module, steps: TechniqueCaller, guard: EquivalenceCheck | None) -> list[Change]:
    """Ask for every module, in model order, and put what the techniques return in its place; returns what changed.

    It comes to the model's device, and wherever the model holds the module: one may bear several names.

    Promises to preserve the function are held to ``guard``; with ``None`` they were in the run that is done again.

    Raises:
        EquivalenceError: a rewrite that promised to preserve the function did not.
    """
    changes: list[Change] = []
    device = next((parameter.device for parameter in model.parameters()), None)
    for hook, wanted in zip(HOOKS, (_is_norm, _is_activation, _is_other), strict=True):
        if not steps.implements(hook):
            continue
        for name, module in list(model.named_modules()):
            if not name or not wanted(module) or not _is_there(model, name, module):
                continue
            answer = steps.first(hook, name=name, module=module)
            if answer is None:
                continue
            technique, result = answer
            replace(model, module, result.module.eval().to(device))
            changes.append(Change(name, technique.name(), result.preserves, result.reason))
            if guard is not None:
                guard.check(changes[-1:])  # one by one: the promise of one holds whatever another did
    return changes


def ask_for_training(changes: Iterable[Change]) -> list[str]:
    """A warning for each technique that changed the function: nothing but training makes up for it."""
    where: dict[str, list[str]] = {}
    for change in changes:
        if not change.preserves:
            where.setdefault(change.technique, []).append(change.where)
    return [
        f"{technique} changed the function at {_some(names)}; training has to make up for it"
        for technique, names in where.items()
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() or type(module).__name__ == "Affine"


def _is_activation(module: nn.Module) -> bool:
    return type(module).__name__ in ACTIVATIONS or is_gelu(module)


def _is_other(module: nn.Module) -> bool:
    return not (_is_norm(module) or _is_activation(module) or isinstance(module, MatMul))


def _is_there(model: nn.Module, name: str, module: nn.Module) -> bool:
    """Whether ``module`` is still in its place: an earlier rewrite may have replaced a parent of it."""
    try:
        return model.get_submodule(name) is module
    except AttributeError:
        return False
