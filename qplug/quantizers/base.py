"""The base of every quantizer, and the two functions that all of them share."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """The smallest and largest integer of ``bits`` bits in two's complement, or unsigned (MPTQ-ViT, Eq. 2)."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def round_ste(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes straight through."""
    return x + (torch.round(x) - x).detach() if x.requires_grad else torch.round(x)


def clamp_ste(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp to [low, high]; the gradient passes there, both ends included.

    That of torch.clamp at the ends depends on torch's version, and whatever rounds to an end lies exactly there.
    """
    if not x.requires_grad:
        return torch.clamp(x, low, high)
    x = torch.where(x > high, float(high), x)
    return torch.where(x < low, float(low), x)


class Quantizer(nn.Module):
    """Fake-quantises a tensor: ``forward`` returns values on the quantizer's grid, in the input's shape and dtype.

    Subclasses set ``kind`` (the name under which ``qplug_quantizers`` offers them), ``bits``, and implement ``forward``
    (straight-through gradients), ``to_dict`` and ``from_dict`` (bit-exact both ways, JSON values only).
    """

    kind: ClassVar[str]
    bits: int

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantise ``x`` (any shape that the scales broadcast with, floating point)."""
        raise TypeError(f"{type(self).__name__} does not implement forward()")

    def infer(self, x: Tensor) -> Tensor:
        """The same values as ``forward``, without gradients and as fast as can be; may not write to ``x``."""
        with torch.no_grad():
            result: Tensor = self.forward(x)
        return result

    def storage_bits(self, shape: tuple[int, ...]) -> int:
        """Bits that a tensor of ``shape`` takes when stored in this format, scales included at 32 bits each."""
        count = 1
        for size in shape:
            count *= size
        derived = self._non_persistent_buffers_set
        return count * self.bits + 32 * sum(b.numel() for name, b in self.named_buffers() if name not in derived)

    def to_dict(self) -> dict[str, Any]:
        """Everything that ``from_dict`` needs, as JSON values, ``kind`` included."""
        raise TypeError(f"{type(self).__name__} does not implement to_dict()")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Quantizer:
        """The quantizer that ``to_dict`` described."""
        raise TypeError(f"{cls.__name__} does not implement from_dict()")

    def describe(self) -> str:
        """A few words for tables: the kind and what a reader wants to know of it."""
        return self.kind
