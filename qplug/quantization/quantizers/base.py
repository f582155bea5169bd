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


def clamp_ste(x: Tensor, low: float, high: float | Tensor) -> Tensor:
    """Clamp to [low, high]; the gradient passes there, both ends included. ``high`` may be a () tensor.

    That of torch.clamp at the ends depends on torch's version, and whatever rounds to an end lies exactly there.
    """
    if not x.requires_grad:
        return torch.clamp(x, low).clamp(max=high)
    x = torch.where(x > high, high if isinstance(high, Tensor) else float(high), x)
    return torch.where(x < low, float(low), x)


HALF = 0.5 + 1e-6
"""How far a value within the range lies from its code at most; a tie counts as within."""


class _FakeQuantize(torch.autograd.Function):
    """x̂ = (clamp(round(x/s + z), l, h) − z)·s with straight-through gradients, in few passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, low: int, high: int) -> Tensor:
        """Fake-quantize, and keep what the gradients need."""
        place = x.contiguous() / scale  # a view's strides would make every operation from here on copy
        if zero_point is not None:
            place.add_(zero_point)
        codes = place.round().clamp_(low, high)
        beside = place.sub_(codes)  # beyond HALF where the range ends
        if zero_point is not None:
            codes.sub_(zero_point)
        values = codes.mul_(scale)
        ctx.zero_shape = None if zero_point is None else zero_point.shape
        learned = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ctx.save_for_backward(beside, *((values, scale) if learned else ()))
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of x: what lies inside passes. Of the scale: the code, less x/s where it is inside (LSQ's Eq. 3).

        Of the zero point: −s outside, for inside it adds and subtracts the same (LSQ+'s Eq. 6 in these terms).
        """
        beside, *learned = ctx.saved_tensors
        gradient = gradient.contiguous()
        inside = torch.ops.aten.hardtanh_backward(gradient, beside, -HALF, HALF)  # one pass; a mask would take three
        of_scale = of_zero = None
        if learned:
            values, scale = learned
            if ctx.needs_input_grad[1]:
                outside = _sum_of_products(gradient, values, scale) - _sum_of_products(inside, values, scale)
                of_scale = outside / scale - _sum_of_products(inside, beside, scale)
            if ctx.needs_input_grad[2]:
                of_zero = ((inside - gradient) * scale).sum_to_size(ctx.zero_shape)
        return inside if ctx.needs_input_grad[0] else None, of_scale, of_zero, None, None


def _sum_of_products(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """Σ a·b over all axes along which ``like`` is broadcast, in its shape."""
    if like.numel() == 1:
        return torch.dot(a.flatten(), b.flatten()).view(like.shape)
    return (a * b).sum_to_size(like.shape)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor | None, low: int, high: int) -> Tensor:
    """(clamp(round(x/s + z), l, h) − z)·s, in the shape of ``x``, which ``scale`` and ``zero_point`` broadcast to.

    ``zero_point`` is ``None`` where it is 0. What is of 16 bits is rounded in the scale's float32, since a code of 8
    bits has no room beside it in bfloat16, and comes back in its own type.

    Gradients pass to ``x`` where the rounded value lies in [low, high], and to ``scale`` as in LSQ (Esser et al. 2020,
    Eq. 3, without their factor), which is what passing straight through the rounding gives; likewise to ``zero_point``.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        return fake_quantize(x.to(scale.dtype), scale, zero_point, low, high).to(x.dtype)
    result: Tensor = _FakeQuantize.apply(x, scale, zero_point, low, high)
    return result


class Quantizer(nn.Module):
    """Fake-quantizes a tensor: ``forward`` returns values on the quantizer's grid, in the input's shape and dtype.

    Subclasses set ``kind`` (the name under which ``qplug_quantizers`` offers them), ``bits``, and implement ``forward``
    (straight-through gradients), ``to_dict`` and ``from_dict`` (bit-exact both ways, JSON values only). Those that
    implement ``encode`` and ``decode`` too let run folders hold a weight as integers of ``bits`` bits.

    ``forward`` and ``infer`` give the same values, bit for bit, where no gradient is asked for. ``infer`` calls
    ``forward`` without gradients, so most subclasses write ``forward`` alone. Where the input or a parameter requires a
    gradient, ``forward`` lets it pass straight through the rounding; its values may then differ in the last bits.
    ``round_ste``, ``clamp_ste`` and ``fake_quantize`` of ``qplug`` do this: without gradients they compute as torch's
    own functions do. A subclass that writes a faster ``infer`` must compute the same operations in the same order.

    Example::

        class Halves(qplug.Quantizer):
            kind = "mine.halves"

            def __init__(self, scale, bits):
                super().__init__()
                self.bits = bits
                self.register_buffer("scale", scale)

            def forward(self, x):
                low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
                codes = qplug.clamp_ste(qplug.round_ste(x / self.scale), low, high)
                return codes * self.scale
    """

    kind: ClassVar[str]
    bits: int

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize ``x`` (any shape that the scales broadcast with, floating point), with gradients for ``x``.

        It may not write to ``x``. Without gradients its values are those of ``infer``, bit for bit.
        """
        raise TypeError(f"{type(self).__name__} does not implement forward()")

    def infer(self, x: Tensor) -> Tensor:
        """The same values as ``forward``, without gradients and as fast as can be; may not write to ``x``."""
        with torch.no_grad():
            result: Tensor = self.forward(x)
        return result

    def encode(self, x: Tensor) -> Tensor:
        """The stored integers of ``x``: its shape, int32, in 0 … 2^bits − 1; ``decode`` gives back their values.

        Not required: a weight whose quantizer raises ``NotImplementedError`` is stored in float.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement encode()")

    def decode(self, codes: Tensor) -> Tensor:
        """The values, float32, of what ``encode`` made: ``decode(encode(x))`` is ``infer(x)``, bit for bit."""
        raise NotImplementedError(f"{type(self).__name__} does not implement decode()")

    def scaled(self, factor: Tensor | float) -> Quantizer:
        """The same codes over a range ``factor`` times as wide; () or, where there are several scales, of their shape.

        Not required: where it is implemented, and gradients pass straight through, reconstruction learns the step.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement scaled()")

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
