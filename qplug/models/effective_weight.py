"""Layers whose weight is computed from parameters: in eval mode it is constant, and a plain layer holds it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

PLAIN = (nn.Conv2d, nn.Linear)
"""Layers that backends hold, by their exact type."""


def is_reparametrized(module: nn.Module) -> bool:
    """Whether torch computes a parameter of ``module``: by a parametrization, a norm of its weight, or pruning."""
    return parametrize.is_parametrized(module) or bool(_computing_hooks(module))


@torch.no_grad()
def compute_parameters(module: nn.Module) -> None:
    """Replace, in place, the computed parameters of a module in eval mode by their values.

    A parametrized class becomes its original one. These are torch's own functions for it.
    """
    for hook in _computing_hooks(module):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
        elif isinstance(hook, WeightNorm):
            nn.utils.remove_weight_norm(module, hook.name)
        else:
            nn.utils.remove_spectral_norm(module, hook.name)
    if parametrize.is_parametrized(module):
        kind = type(module)  # torch deletes the parameters' properties from it, and copies of the module share it
        own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(kind.__name__, kind.__bases__, own)
        for name, computed in list(module.parametrizations.items()):  # type: ignore[union-attr, operator]  # checked above
            trained = any(True for _ in computed.parameters())
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            if trained and name in module._buffers:  # torch makes a buffer of what needs no gradient
                value = module._buffers.pop(name)
                assert value is not None
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def copy_module(module: nn.Module) -> nn.Module:
    """A deep copy, also of a module with a tensor that a hook computes, which torch refuses to copy with its graph."""
    return copy.deepcopy(module, {id(x): x.detach().clone() for _, _, x in _computed_tensors(module)})


def detach_computed(module: nn.Module) -> None:
    """Detach, in place, the tensors that hooks computed, so that the module can be copied; they are computed again."""
    for part, name, x in _computed_tensors(module):
        vars(part)[name] = x.detach()


def _computed_tensors(module: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    attributes = ((part, name, x) for part in module.modules() for name, x in vars(part).items())
    return [(part, name, x) for part, name, x in attributes if isinstance(x, Tensor) and x.grad_fn is not None]


def is_own_kind(module: nn.Module) -> bool:
    """Whether the module derives from a plain layer, and may compute something else."""
    return isinstance(module, PLAIN) and type(module) not in PLAIN


@torch.no_grad()
def plain_layer(module: nn.Module, x: Tensor) -> nn.Module | None:
    """A plain layer that computes what ``module`` does on ``x``, or ``None`` if its forward is more than one layer.

    That is the case if it calls a convolution or linear once, on its input as it is, returns the result as it is, and
    the weight does not depend on the input.
    """
    try:
        calls, again = (_products(module, one) for one in (x, x.flip(-1) * 2))
    except Exception:  # the caller says that it cannot be held
        return None
    if len(calls) != 1 or len(again) != 1:
        return None
    ((function, args, read, returned),), ((_, other, _, _),) = calls, again
    same = all(_same(first, second) for first, second in zip(args[1:], other[1:], strict=True))
    return layer_of(module, function, args) if read and returned and same else None


def weight_of(module: nn.Module, x: Tensor) -> nn.Module:
    """The plain layer of the only convolution or linear that ``module`` calls on ``x``, whatever it does beside."""
    with torch.no_grad():
        ((function, args, _, _),) = _products(module, x)
    return layer_of(module, function, args)


def layer_of(module: Any, function: Any, args: tuple[Any, ...]) -> nn.Module:
    """The plain layer of one call. A parameter of ``module`` that it reads as it is stays the very same parameter."""
    weight, bias = args[1], args[2]
    layer: Any
    if function is F.linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        stride, padding, dilation, groups = args[3:]
        sizes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        sizes = {name: size if isinstance(size, (int, str)) else tuple(size) for name, size in sizes.items()}
        size = (weight.shape[2], weight.shape[3])
        layer = nn.Conv2d(weight.shape[1] * groups, len(weight), size, bias=bias is not None, device="meta", **sizes)
    layer.weight = _parameter(module, weight)
    layer.bias = None if bias is None else _parameter(module, bias)
    layer.eval()
    return layer  # type: ignore[no-any-return]  # untyped to set its parameters


def _parameter(module: nn.Module, value: Tensor) -> nn.Parameter:
    if isinstance(value, nn.Parameter):
        return value
    trained = any(parameter.requires_grad for parameter in module.parameters())
    return nn.Parameter(value.detach().clone(), requires_grad=trained)


_SIGNATURES: dict[Any, tuple[tuple[str, Any], ...]] = {
    F.linear: (("bias", None),),
    F.conv2d: (("bias", None), ("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)),
}


def _products(module: nn.Module, x: Tensor) -> list[tuple[Any, tuple[Any, ...], bool, bool]]:
    """(function, its arguments, whether it reads ``x``, whether its result is returned) of each product."""
    found: list[tuple[Any, tuple[Any, ...], Tensor]] = []

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func in _SIGNATURES:
                given = dict(zip(("input", "weight", *(name for name, _ in _SIGNATURES[func])), args, strict=False))
                given = dict(_SIGNATURES[func]) | given | (kwargs or {})
                names = ("input", "weight", *(name for name, _ in _SIGNATURES[func]))
                found.append((func, tuple(given[name] for name in names), out))
            return out

    with Recorder():
        result = module(x)
    return [(function, args, args[0] is x, out is result) for function, args, out in found]


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first is second or (first.shape == second.shape and torch.equal(first, second))
    return bool(first == second)


def _computing_hooks(module: nn.Module) -> list[Any]:
    kinds = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, kinds)]
