"""QuantizeLinear and DequantizeLinear: uniform quantizers as the operators that ONNX has for them."""

from __future__ import annotations

import copy
from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from qplug.export.formats.fallback import DecodedWeight, plain_weight, traced
from qplug.export.formats.lowering import Format
from qplug.quantization.plan import Decision
from qplug.quantization.quantizers import UniformQuantizer, integer_range

HELD = {(8, True): torch.int8, (8, False): torch.uint8, (16, True): torch.int16, (16, False): torch.uint16}
"""(bits, signed) → the type of torch. Narrower integers are traced in 8 bits: see ``graph.narrow``."""
SHIFT = 128
"""Between the integers of 8 bits with and without a sign."""
LARGEST_PAIR = 2**15 - 1
"""Largest sum of two products that 16 bits hold. Without VNNI, ONNX Runtime adds products of unsigned by signed bytes
on x86 in pairs, in 16 bits and with saturation (VPMADDUBSW). Where both sides are unsigned it widens them first, and
their products are exact on every processor."""


@dataclass(frozen=True)
class Affine:
    """Scale, zero point and integers of one QuantizeLinear or DequantizeLinear.

    Attributes:
        scale: () or (C,) float32.
        zero_point: likewise, in torch's type of at least ``bits`` bits.
        axis: of the scales, counted from the end; ``None`` where there is one scale.
        bits: of the integers as the file has them.
        signed: whether they are.
    """

    scale: Tensor
    zero_point: Tensor
    axis: int | None
    bits: int
    signed: bool

    @classmethod
    def of(cls, quantizer: UniformQuantizer, bits: int) -> Affine | None:
        """In integers of ``bits`` bits; ``None`` for scales along several axes, or zero points beyond the integers."""
        shape = (quantizer.scale + quantizer.zero_point).shape
        scale, zero = quantizer.scale.cpu().expand(shape), quantizer.zero_point.cpu().expand(shape)
        wide = [i - scale.dim() for i, size in enumerate(scale.shape) if size > 1]
        low, high = integer_range(bits, quantizer.signed)
        if len(wide) > 1 or not bool(((zero >= low) & (zero <= high) & (zero == zero.round())).all()):
            return None
        flat, held = (-1,) if wide else (), HELD[max(bits, 8), quantizer.signed]
        axis = wide[0] if wide else None
        return cls(scale.reshape(flat), zero.reshape(flat).to(held), axis, bits, quantizer.signed)

    def with_sign(self, signed: bool) -> Affine:
        """The same values in bytes with or without a sign: the zero point moves by ``SHIFT``."""
        if self.signed == signed:
            return self
        moved = self.zero_point.to(torch.int16) + (-SHIFT if signed else SHIFT)
        return replace(self, zero_point=moved.to(HELD[8, signed]), signed=signed)

    def moved(self, quantizer: UniformQuantizer) -> int:
        """How far these integers lie above those of ``quantizer``: 0, or ``SHIFT`` up or down."""
        return int(self.zero_point.flatten()[0]) - int(quantizer.zero_point.flatten()[0])


class _Linear(nn.Module):
    """What both operators share: their inputs, and which of them a file holds in fewer bits."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, affine: Affine, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed
        axis = {-1: -2, -2: -1}.get(affine.axis or 0, affine.axis) if transposed else affine.axis
        self.attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        self.register_buffer("scale", affine.scale)
        self.register_buffer("zero_point", affine.zero_point)
        self.narrow = {"zero_point": (affine.bits, affine.signed)}

    def dequantize(self, codes: Tensor) -> Tensor:
        """(codes − z)·s, of codes that are transposed already."""
        inputs = (codes, self.scale, self.zero_point)
        return symbolic("DequantizeLinear", inputs, self.attributes, dtype=torch.float32, shape=codes.shape)


class QdqActivation(_Linear):
    """QuantizeLinear, a Clip where the type has more integers than the quantizer, DequantizeLinear."""

    low: Tensor
    high: Tensor

    def __init__(self, quantizer: UniformQuantizer, affine: Affine, transposed: bool) -> None:
        super().__init__(affine, transposed)
        moved = affine.moved(quantizer)
        self.affine, self.largest = affine, quantizer.high + moved
        self.clips = quantizer.bits < affine.bits
        if self.clips:
            self.register_buffer("low", self.zero_point.new_tensor(quantizer.low + moved))
            self.register_buffer("high", self.zero_point.new_tensor(self.largest))

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize: clamp(round(x/s) + z, l, h), where the quantizer rounds x/s + z."""
        codes = self.codes(x)
        kind = codes.dtype
        if self.clips:
            codes = symbolic("Clip", (codes, self.low, self.high), dtype=kind, shape=x.shape)
        # Not the values but the integers are transposed: ONNX Runtime fails on, or moves, a Transpose around the pair.
        return self.dequantize(codes.transpose(-2, -1) if self.transposed else codes)

    def codes(self, x: Tensor) -> Tensor:
        """QuantizeLinear."""
        kind, inputs = self.zero_point.dtype, (x, self.scale, self.zero_point)
        return symbolic("QuantizeLinear", inputs, dtype=kind, shape=x.shape)


class Shifted(nn.Module):
    """x/s + z before a QuantizeLinear of scale 1: z is added before rounding, as the quantizer does.

    Images are made of 256 values. Where a range just holds them, as of −1 … 1 with a zero point of 127.5 rounded to
    128, every pixel is a tie, and half of them round the other way where z is added later.
    """

    one: Tensor
    origin: Tensor

    def __init__(self, quantizer: UniformQuantizer, affine: Affine) -> None:
        super().__init__()
        self.quantizer = copy.deepcopy(quantizer).cpu()
        self.register_buffer("one", torch.ones(()))
        self.register_buffer("origin", affine.zero_point.new_tensor(affine.moved(quantizer)))
        self.narrow = {"origin": (affine.bits, affine.signed)}

    def forward(self, x: Tensor) -> Tensor:
        """Div, Add, QuantizeLinear."""
        place = x / self.quantizer.scale + self.quantizer.zero_point
        return symbolic("QuantizeLinear", (place, self.one, self.origin), dtype=self.origin.dtype, shape=x.shape)


class ShiftedActivation(QdqActivation):
    """The same with integers from ``Shifted``."""

    def __init__(self, quantizer: UniformQuantizer, affine: Affine, transposed: bool) -> None:
        super().__init__(quantizer, affine, transposed)
        self.shifted = Shifted(quantizer, affine)

    def codes(self, x: Tensor) -> Tensor:
        """Div, Add, QuantizeLinear."""
        out: Tensor = self.shifted(x)
        return out


class QdqWeight(_Linear):
    """A weight's integers and DequantizeLinear."""

    codes: Tensor

    def __init__(self, codes: Tensor, affine: Affine, transposed: bool) -> None:
        super().__init__(affine, transposed)
        codes = codes.to(affine.zero_point.dtype)
        self.register_buffer("codes", codes.t().contiguous() if transposed else codes)
        self.narrow |= {"codes": (affine.bits, affine.signed)}

    def forward(self) -> Tensor:
        """The values."""
        return self.dequantize(self.codes)


class Qdq(Format):
    """The format: what is uniform by its own operators, all else as plain ones.

    Bytes of activations are unsigned, and so are those of a weight whose products with them might saturate. What the
    file gives therefore does not depend on the processor.

    Args:
        widths: bits that integers may have in the file, ascending.
        on_grid: operations that read the model's own input, whose values may be ties.
        saturating: whether bytes keep their quantizer's sign, which is faster with VNNI and wrong on x86 without it.
    """

    def __init__(
        self, widths: tuple[int, ...] = (4, 8, 16), on_grid: Container[str] = (), saturating: bool = False
    ) -> None:
        self.widths, self.on_grid, self.saturating = widths, on_grid, saturating

    def activation(self, decision: Decision, transposed: bool) -> nn.Module:
        """See ``Format``. Runtimes clip integers of 8 bits, and of no other width.

        Several scales are left to plain operators: no runtime multiplies such integers, and ONNX Runtime, which fuses
        their DequantizeLinear with a matmul all the same, then fails on them.
        """
        quantizer = decision.quantizer
        bits = quantizer.bits if quantizer.bits in self.widths else 8
        if type(quantizer) is UniformQuantizer and quantizer.bits <= bits:
            affine = Affine.of(quantizer, bits)
            if affine is not None and affine.axis is None:
                if bits == 8:
                    affine = affine.with_sign(self.signed(decision, quantizer))
                return self.affine_activation(decision, quantizer, affine, transposed)
        return traced(quantizer, transposed)

    def signed(self, decision: Decision, quantizer: UniformQuantizer) -> bool:
        """Whether an activation's bytes have a sign in the file."""
        return self.saturating and quantizer.signed

    def affine_activation(
        self, decision: Decision, quantizer: UniformQuantizer, affine: Affine, transposed: bool
    ) -> nn.Module:
        """The pair of operators for a quantizer that ``affine`` stands for."""
        kind = ShiftedActivation if self.ties(decision, quantizer) else QdqActivation
        return kind(quantizer, affine, transposed)

    def ties(self, decision: Decision, quantizer: UniformQuantizer) -> bool:
        """Whether values may be ties and a zero point decides which way they round."""
        return decision.site.module in self.on_grid and not quantizer.symmetric

    def weight(self, decision: Decision, weight: Tensor, transposed: bool, beside: nn.Module | None) -> nn.Module:
        """See ``Format``.

        ONNX Runtime multiplies values that are not integers by dequantized ones of 4 bits and fewer with a kernel of
        its own, which rounds the values to 8 bits (6e-3 of the norm on DeiT-Ti): such weights are decoded in sight.
        """
        quantizer = decision.quantizer
        bits = next((width for width in self.widths if width >= quantizer.bits), 0)
        bits = bits if bits > 4 or isinstance(beside, QdqActivation) else 0
        if type(quantizer) is UniformQuantizer and bits and (affine := Affine.of(quantizer, bits)):
            codes = quantizer.encode(weight) + quantizer.low
            largest = beside.largest if isinstance(beside, QdqActivation) and beside.affine.bits == bits == 8 else 0
            if not self.saturating and saturates(largest, codes):
                affine = affine.with_sign(False)
            return QdqWeight(codes + affine.moved(quantizer), affine, transposed)
        return plain_weight(decision, weight, transposed, DecodedWeight)


def saturates(largest: int, codes: Tensor) -> bool:
    """Whether some sum of two products, of bytes up to ``largest`` by signed ``codes``, may exceed 16 bits."""
    return 2 * largest * int(codes.abs().max()) > LARGEST_PAIR
