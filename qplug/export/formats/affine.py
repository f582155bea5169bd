"""Scales, zero points and integer types of QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qplug.quantization.quantizers import UniformQuantizer, integer_range

TORCH_INTEGERS = {
    (8, True): torch.int8,
    (8, False): torch.uint8,
    (16, True): torch.int16,
    (16, False): torch.uint16,
}
"""(bits, signed) → torch's type. Narrower integers are traced in 8 bits, and ``graph`` narrows them."""
SHIFT = 128
"""Difference of the same value's unsigned and signed integers of 8 bits."""
LARGEST_SUM = 2**15 - 1
"""Largest sum of two products in 16 bits.

On x86 without VNNI, ONNX Runtime adds pairs of products of unsigned by signed bytes in 16 bits, with saturation
(VPMADDUBSW). It widens products of unsigned bytes first, so these are exact on every processor.
"""


@dataclass(frozen=True)
class Affine:
    """Scale, zero point and integers of one QuantizeLinear or DequantizeLinear.

    Attributes:
        scale: () or (C,) float32.
        zero_point: () or (C,), in torch's type of at least ``bits`` bits.
        axis: of the scales, counted from the end; ``None`` for a single scale.
        bits: of the integers in the file.
        signed: whether these integers are signed.
    """

    scale: Tensor
    zero_point: Tensor
    axis: int | None
    bits: int
    signed: bool

    @classmethod
    def of(cls, quantizer: UniformQuantizer, bits: int) -> Affine | None:
        """The quantizer in integers of ``bits`` bits.

        ``None`` if its scales lie along several axes, or a zero point is no such integer.
        """
        shape = (quantizer.scale + quantizer.zero_point).shape
        scale, zero = quantizer.scale.cpu().expand(shape), quantizer.zero_point.cpu().expand(shape)
        wide = [i - scale.dim() for i, size in enumerate(scale.shape) if size > 1]
        low, high = integer_range(bits, quantizer.signed)
        if len(wide) > 1 or not bool(((zero >= low) & (zero <= high) & (zero == zero.round())).all()):
            return None
        flat, held = (-1,) if wide else (), TORCH_INTEGERS[max(bits, 8), quantizer.signed]
        axis = wide[0] if wide else None
        return cls(scale.reshape(flat), zero.reshape(flat).to(held), axis, bits, quantizer.signed)

    def with_sign(self, signed: bool) -> Affine:
        """The same values in signed or unsigned bytes: the zero point moves by ``SHIFT``."""
        if self.signed == signed:
            return self
        moved = self.zero_point.to(torch.int16) + (-SHIFT if signed else SHIFT)
        return replace(self, zero_point=moved.to(TORCH_INTEGERS[8, signed]), signed=signed)

    def moved(self, quantizer: UniformQuantizer) -> int:
        """These integers minus those of ``quantizer`` for the same value: 0, ``SHIFT`` or ``-SHIFT``."""
        return int(self.zero_point.flatten()[0]) - int(quantizer.zero_point.flatten()[0])


def saturates(largest: int, codes: Tensor) -> bool:
    """Whether a sum of two products, of bytes up to ``largest`` by signed ``codes``, may exceed 16 bits."""
    return 2 * largest * int(codes.abs().max()) > LARGEST_SUM
