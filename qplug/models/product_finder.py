"""Which modules of a model multiply activations in their own forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from qplug.models.attention import MatMul
from qplug.models.explicit import ExplicitForward
from qplug.models.functional_layers import LAYERS
from qplug.models.products import PRODUCTS
from qplug.models.recording import inlined


class ProductFinder(TorchFunctionMode):
    """Context in which forwards show which modules multiply activations, or call functional layers, themselves.

    Attributes:
        found: paths of the modules of ``model``, in the order of their calls.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: dict[str, None] = {}
        self._inside: list[tuple[str, nn.Module]] = []
        self._handles: list[Any] = []
        self._inlined = inlined()
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                continue
            self._handles += [
                module.register_forward_pre_hook(lambda part, _, n=name: self._inside.append((n, part))),
                module.register_forward_hook(lambda *_: self._inside.pop() and None),
            ]

    def __enter__(self) -> ProductFinder:
        self._inlined.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]  # of torch
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # of torch
        self._inlined.__exit__(None, None, None)
        for handle in self._handles:
            handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        if self._inside and (name in PRODUCTS or (name in LAYERS and _has_parameter(args, kwargs))):
            path, module = self._inside[-1]
            if _may_change(module):
                self.found.setdefault(path)
        return func(*args, **(kwargs or {}))


def _has_parameter(args: Any, kwargs: Any) -> bool:
    return any(isinstance(value, nn.Parameter) for value in (*args[1:2], (kwargs or {}).get("weight")))


def _may_change(module: nn.Module) -> bool:
    """Whether the class of a module is neither torch's nor one that sites are made of."""
    sealed = (MatMul, ExplicitForward, torch.jit.ScriptModule)
    layer = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    return not (type(module).__module__.partition(".")[0] == "torch" or layer or isinstance(module, sealed))
