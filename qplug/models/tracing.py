"""``Tracer``, which finds the operation that produced a tensor, also through views and copies; kinds of modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qplug.core.types import SiteKind

LAYOUT = frozenset(
    "reshape view permute transpose contiguous flatten unflatten roll clone dropout pad squeeze unsqueeze movedim "
    "to float type_as view_as reshape_as swapaxes detach expand".split()
)
"""Functions that return the values of their first argument, at most rearranged."""


class Tracer(TorchFunctionMode):
    """Context that labels tensors with their origin.

    ``origin(tensor)`` is the last label of the tensor, or of the tensor that it is a view or copy of. Every other
    function calls ``on_use`` with (origin, function name) for each labelled argument, unless ``quiet`` is positive.
    """

    def __init__(self, on_use: Callable[[str, str], None]) -> None:
        super().__init__()
        self._on_use = on_use
        self._labels: dict[int, tuple[Tensor, str]] = {}
        self.quiet = 0

    def label(self, tensor: Tensor, origin: str) -> None:
        """Label ``tensor`` with an origin. The tracer holds a reference, so that its id stays unique."""
        self._labels[id(tensor)] = (tensor, origin)

    def origin(self, tensor: Any) -> str | None:
        """The origin of ``tensor``, or ``None`` if it has no label."""
        entry = self._labels.get(id(tensor))
        return entry[1] if entry else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.quiet:
            return out
        name = getattr(func, "__name__", "")
        source = self.origin(args[0]) if args else None
        if source and name in LAYOUT and isinstance(out, Tensor) and _only_moved(name, args[0], out):
            self.label(out, source)
        elif _computes(name, out):
            for value in _flat((*args, *(kwargs or {}).values())):
                used = self.origin(value)
                if used:
                    self._on_use(used, name)
        return out


def _computes(name: str, out: Any) -> bool:
    """Whether the function computes with values. Sizes do not count; attributes count if they are tensors (``x.T``)."""
    if name == "__get__":
        return isinstance(out, Tensor)
    return name not in ("size", "dim", "__set__", "stride", "is_contiguous")


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """The values, with lists and tuples (such as the argument of ``torch.cat``) flattened."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _only_moved(name: str, before: Tensor, after: Tensor) -> bool:
    """Whether the values were only rearranged. Padding adds zeros, which a shift would change, unless its size is 0."""
    return name != "pad" or before.shape == after.shape


def kind_after(module: nn.Module) -> SiteKind | None:
    """The kind of the outputs of a norm, a Softmax or an activation function; ``None`` for any other module.

    A module with children or parameters is not an activation function, whatever its name.
    """
    if is_norm(module):
        return SiteKind.POST_LAYERNORM
    if isinstance(module, nn.Softmax):
        return SiteKind.POST_SOFTMAX
    if any(module.children()) or next(module.parameters(), None) is not None:
        return None
    name = type(module).__name__.lower()
    return next((kind for kind in SiteKind if kind.activation and kind.activation in name), None)


def is_activation(module: nn.Module) -> bool:
    """Whether ``module`` is an activation function whose outputs have a ``SiteKind``."""
    kind = kind_after(module)
    return kind is not None and bool(kind.activation)


def is_gelu(module: nn.Module) -> bool:
    """Whether ``module`` is a GELU or one of its variants (nn.GELU, timm's GELU, GELUTanh, QuickGELU)."""
    return kind_after(module) is SiteKind.POST_GELU


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a LayerNorm over the last axis, timm's variants included, except ``LayerNorm2d``."""
    return isinstance(module, nn.LayerNorm) and "2d" not in type(module).__name__


def no_grad_forward(model: nn.Module, image: Tensor) -> Tensor:
    """One forward of ``model`` on ``image`` without gradients (not in inference mode, in which ids of views change)."""
    with torch.no_grad():
        out: Tensor = model(image)
    return out
