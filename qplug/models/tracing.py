"""Which operation produced a tensor, followed through views and copies: one traced forward answers for the model."""

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
"""Functions whose result holds the values of their first argument, moved at most."""


class Tracer(TorchFunctionMode):
    """Labels tensors with their origin while active.

    ``origin(tensor)`` is the label last given by ``label`` to the tensor that this one is a view or a copy of.
    ``on_use`` is called with (origin, function name) for every use by a function that is not layout, unless ``quiet``.
    """

    def __init__(self, on_use: Callable[[str, str], None]) -> None:
        super().__init__()
        self._on_use = on_use
        self._labels: dict[int, tuple[Tensor, str]] = {}
        self.quiet = 0

    def label(self, tensor: Tensor, origin: str) -> None:
        """Give ``tensor`` an origin. The tensor is kept alive, so that its id stays its own."""
        self._labels[id(tensor)] = (tensor, origin)

    def origin(self, tensor: Any) -> str | None:
        """The origin of ``tensor``, or ``None``."""
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
    """Looking at sizes is no use; an attribute is one where it is a tensor, such as ``x.T``."""
    if name == "__get__":
        return isinstance(out, Tensor)
    return name not in ("size", "dim", "__set__", "stride", "is_contiguous")


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """The values, and those in lists and tuples such as ``torch.cat`` takes."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _only_moved(name: str, before: Tensor, after: Tensor) -> bool:
    """Padding adds zeros, which a shift would not preserve; it counts as layout only where it adds nothing."""
    return name != "pad" or before.shape == after.shape


def kind_after(module: nn.Module) -> SiteKind | None:
    """The kind of what ``module`` gives to operations, where it has one of its own: norm, Softmax or activation.

    An activation function has neither children nor parameters; a block that holds one is none, whatever its name.
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
    """Whether ``module`` is an activation function whose outputs have a kind of their own."""
    kind = kind_after(module)
    return kind is not None and bool(kind.activation)


def is_gelu(module: nn.Module) -> bool:
    """Whether ``module`` is a GELU in one of its spellings (nn.GELU, timm's GELU, GELUTanh, QuickGELU)."""
    return kind_after(module) is SiteKind.POST_GELU


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a LayerNorm over the last axis, timm's variants included; its ``LayerNorm2d`` is none."""
    return isinstance(module, nn.LayerNorm) and "2d" not in type(module).__name__


def no_grad_forward(model: nn.Module, image: Tensor) -> Tensor:
    """One forward of ``model`` on ``image`` without gradients (not in inference mode, whose views lose ids)."""
    with torch.no_grad():
        out: Tensor = model(image)
    return out
