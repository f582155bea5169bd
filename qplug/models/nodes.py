"""Nodes of a recorded forward: their functions, arguments and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn


def called(node: fx.Node) -> str:
    """The name of the function or method of a node, without underscores."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.strip("_") if node.op in ("call_function", "call_method") else ""


def arguments(node: fx.Node, *names: str) -> list[Any]:
    """The arguments of a node by the names of its function; ``None`` for those that were not given.

    Several names of one argument are separated by ``|``.
    """
    found = list(node.args[: len(names)])
    rest = (alternatives.split("|") for alternatives in names[len(found) :])
    return found + [next((node.kwargs[name] for name in each if name in node.kwargs), None) for each in rest]


@dataclass
class Pair:
    """The value of a node for one image, and for three of which it is the first."""

    one: Tensor
    three: Tensor

    @classmethod
    def of(cls, node: Any) -> Pair | None:
        """The value of ``node``, or ``None`` if it is no tensor."""
        values = node.meta.get("values") if isinstance(node, fx.Node) else None
        return cls(*values) if values and all(isinstance(value, Tensor) for value in values) else None

    @property
    def is_constant(self) -> bool:
        """Whether it is the same for all images."""
        return self.one.shape == self.three.shape and _close(self.one, self.three)

    @property
    def has_images(self) -> bool:
        """Whether its first axis is that of images, or of each image's windows."""
        if self.one.dim() == 0 or self.three.shape != (3 * len(self.one), *self.one.shape[1:]):
            return False
        return _close(self.one, self.three[: len(self.one)])


def _close(one: Tensor, other: Tensor) -> bool:
    largest = float(one.float().nan_to_num().abs().amax()) if one.numel() else 0.0
    return torch.allclose(one.float(), other.float(), rtol=1e-2, atol=1e-3 * largest, equal_nan=True)


def untransposed(node: Any) -> Any:
    """The node whose last two axes this one swaps, or ``None``."""
    pair = Pair.of(node)
    if pair is None:
        return None
    last = {pair.one.dim() - 2, pair.one.dim() - 1}
    if called(node) in ("transpose", "swapaxes", "swapdims"):
        axes = {axis % pair.one.dim() for axis in node.args[1:] if isinstance(axis, int)}
        return node.args[0] if axes == last else None
    if called(node) == "getattr" and node.args[1] == "mT":
        return node.args[0]
    return None


def is_read_once(node: Any) -> bool:
    """Whether it is a node that one other node reads."""
    return isinstance(node, fx.Node) and len(node.users) == 1


def is_parameter(node: Any) -> bool:
    """Whether it is a node that is a parameter of the module, or of one of its submodules."""
    return isinstance(node, fx.Node) and node.op == "get_attr" and isinstance(node.meta.get("value"), nn.Parameter)
