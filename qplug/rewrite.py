"""Rewriting the float model: norms, activations, then any module, each offered to the techniques in turn."""

from __future__ import annotations

from torch import nn

from qplug.guard import Guard
from qplug.models.explicit import MatMul
from qplug.plan import Change
from qplug.steps import Steps

ACTIVATIONS = frozenset(
    "ReLU ReLU6 LeakyReLU PReLU ELU GELU GELUTanh QuickGELU SiLU Hardswish Mish Tanh Sigmoid".split()
)


def rewrite(model: nn.Module, steps: Steps, guard: Guard) -> list[Change]:
    """Ask for every module, in model order, and put what the techniques return in its place; returns what changed.

    Raises:
        GuardError: a rewrite that promised to preserve the function did not.
    """
    changes: list[Change] = []
    for hook, wanted in (
        ("qplug_rewrite_norm", _is_norm),
        ("qplug_bound_activation", _is_activation),
        ("qplug_rewrite_module", _is_other),
    ):
        if not steps.implements(hook):
            continue
        for name, module in list(model.named_modules()):
            if not name or not wanted(module) or not _is_there(model, name, module):
                continue
            answer = steps.first(hook, name=name, module=module)
            if answer is None:
                continue
            technique, result = answer
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, result.module.eval())
            changes.append(Change(name, technique.name(), result.preserves, result.reason))
            guard.check(changes[-1:])  # one by one: the promise of one holds whatever another did
    return changes


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() or type(module).__name__ == "Affine"


def _is_activation(module: nn.Module) -> bool:
    return type(module).__name__ in ACTIVATIONS


def _is_other(module: nn.Module) -> bool:
    return not (_is_norm(module) or _is_activation(module) or isinstance(module, MatMul))


def _is_there(model: nn.Module, name: str, module: nn.Module) -> bool:
    """Whether ``module`` is still in its place: an earlier rewrite may have replaced a parent of it."""
    try:
        return model.get_submodule(name) is module
    except AttributeError:
        return False
