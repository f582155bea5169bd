"""Models without ``torch.compile``: compiled code calls no module, so that nothing in it could be quantized."""

from __future__ import annotations

import types
from typing import Any

from torch import nn

from qplug.models.surgery import replace


def eager(model: nn.Module) -> nn.Module:
    """``model`` with every compiled part and method as it was written, in place; a compiled model is unwrapped.

    A quantized model can be compiled again: ``torch.compile(qplug.load_quantized(RUN))``.
    """
    model = _unwrapped(model)
    for module in list(model.modules()):
        if (inner := _unwrapped(module)) is not module:
            replace(model, module, inner)
    for module in model.modules():
        if getattr(module, "_compiled_call_impl", None) is not None:
            module._compiled_call_impl = None
        for name, function in _methods(type(module)).items():
            if (written := getattr(function, "_torchdynamo_orig_callable", None)) is not None:
                setattr(module, name, types.MethodType(written, module))
    return model


def _unwrapped(module: nn.Module) -> nn.Module:
    """What ``torch.compile`` wrapped; its own class is no part of torch's interface."""
    inner = getattr(module, "_orig_mod", None)
    return _unwrapped(inner) if isinstance(inner, nn.Module) else module


def _methods(kind: type[nn.Module]) -> dict[str, Any]:
    return {name: value for base in reversed(kind.__mro__) for name, value in vars(base).items() if callable(value)}
