"""The base class of quantizers, and fake quantization with straight-through gradients."""

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
    """Clamp to [low, high]; the gradient passes inside, both ends included. ``high`` may be a () tensor.

    At the ends, the gradient of torch.clamp depends on torch's version. Values rounded to an end lie exactly there.
    """
    if not x.requires_grad:
        return torch.clamp(x, low).clamp(max=high)
    x = torch.where(x > high, high if isinstance(high, Tensor) else float(high), x)
    return torch.where(x < low, float(low), x)


HALF_STEP = 0.5 + 1e-6
"""Largest distance between a value inside the range and its code; a tie counts as inside."""


class _FakeQuantize(torch.autograd.Function):
    """x̂ = (clamp(round(x/s + z), l, h) − z)·s with straight-through gradients, in few passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, low: int, high: int) -> Tensor:
        """Fake-quantize, and save the tensors of the gradients."""
        position = x.contiguous() / scale  # contiguous: the strides of a view would slow every following operation
        if zero_point is not None:
            position.add_(zero_point)
        codes = position.round().clamp_(low, high)
        remainder = position.sub_(codes)  # beyond ±HALF_STEP outside the range
        if zero_point is not None:
            codes.sub_(zero_point)
        values = codes.mul_(scale)
        ctx.zero_shape = None if zero_point is None else zero_point.shape
        learned = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ctx.save_for_backward(remainder, *((values, scale) if learned else ()))
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, the scale and the zero point.

        - x: 1 inside the range, 0 outside.
        - scale: the code minus x/s inside, the code outside (LSQ's Eq. 3).
        - zero point: 0 inside, because it is added and subtracted; −s outside (LSQ+'s Eq. 6 in these terms).
        """
        remainder, *learned = ctx.saved_tensors
        gradient = gradient.contiguous()
        inside = torch.ops.aten.hardtanh_backward(gradient, remainder, -HALF_STEP, HALF_STEP)  # a mask takes 3 passes
        of_scale = of_zero = None
        if learned:
            values, scale = learned
            if ctx.needs_input_grad[1]:
                outside = _sum_of_products(gradient, values, scale) - _sum_of_products(inside, values, scale)
                of_scale = outside / scale - _sum_of_products(inside, remainder, scale)
            if ctx.needs_input_grad[2]:
                of_zero = ((inside - gradient) * scale).sum_to_size(ctx.zero_shape)
        return inside if ctx.needs_input_grad[0] else None, of_scale, of_zero, None, None


def _sum_of_products(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """Σ a·b over all axes along which ``like`` is broadcast, in the shape of ``like``."""
    if like.numel() == 1:
        return torch.dot(a.flatten(), b.flatten()).view(like.shape)
    return (a * b).sum_to_size(like.shape)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor | None, low: int, high: int) -> Tensor:
    """(clamp(round(x/s + z), l, h) − z)·s, in the shape of ``x``, to which ``scale`` and ``zero_point`` broadcast.

    ``zero_point`` is ``None`` for 0. A 16-bit ``x`` is rounded in the scale's float32, because the mantissa of bfloat16
    holds a code of 8 bits without any fraction; the result has the dtype of ``x``.

    The gradients are straight-through. ``x`` gets a gradient if the rounded value lies in [low, high]. The gradient of
    ``scale`` is LSQ's (Esser et al. 2020, Eq. 3, without the factor of LSQ); ``zero_point`` likewise.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        return fake_quantize(x.to(scale.dtype), scale, zero_point, low, high).to(x.dtype)
    result: Tensor = _FakeQuantize.apply(x, scale, zero_point, low, high)
    return result


class Quantizer(nn.Module):
    """Fake-quantizes a tensor: ``forward`` returns values on the quantizer's grid, in the input's shape and dtype.

    Subclasses set ``kind`` (the name in ``qplug_quantizers``) and ``bits``. They implement ``forward`` with
    straight-through gradients, and ``to_dict`` and ``from_dict``, which are bit-exact and use JSON values only. If a
    subclass also implements ``encode`` and ``decode``, run folders store a weight as integers of ``bits`` bits.

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
        """The same values as ``forward``, without gradients and optimized for speed; ``x`` is not changed."""
        with torch.no_grad():
            result: Tensor = self.forward(x)
        return result

    def encode(self, x: Tensor) -> Tensor:
        """The stored integers of ``x``: int32 in the shape of ``x``, in 0 … 2^bits − 1; ``decode`` is the inverse.

        Optional: a weight whose quantizer raises ``NotImplementedError`` is stored in float.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement encode()")

    def decode(self, codes: Tensor) -> Tensor:
        """The float32 values of stored integers: ``decode(encode(x))`` equals ``infer(x)`` bit for bit."""
        raise NotImplementedError(f"{type(self).__name__} does not implement decode()")

    def scaled(self, factor: Tensor | float) -> Quantizer:
        """The same codes over a range ``factor`` times as wide; ``factor`` is () or has the shape of the scales.

        Optional: if it is implemented and gradients pass straight through, reconstruction can learn the step size.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement scaled()")

    def storage_bits(self, shape: tuple[int, ...]) -> int:
        """Bits of a stored tensor of ``shape`` in this format, including the scales at 32 bits each."""
        count = 1
        for size in shape:
            count *= size
        derived = self._non_persistent_buffers_set
        return count * self.bits + 32 * sum(b.numel() for name, b in self.named_buffers() if name not in derived)

    def to_dict(self) -> dict[str, Any]:
        """The arguments of ``from_dict`` as JSON values, including ``kind``."""
        raise TypeError(f"{type(self).__name__} does not implement to_dict()")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Quantizer:
        """The quantizer with the values of ``to_dict``."""
        raise TypeError(f"{cls.__name__} does not implement from_dict()")

    def describe(self) -> str:
        """A few words for tables: the kind and its important parameters."""
        return self.kind
