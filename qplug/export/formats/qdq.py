"""QuantizeLinear and DequantizeLinear: uniform quantizers as the operators that ONNX has for them."""

from __future__ import annotations

import copy
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from qplug.export.formats.affine import Affine, saturates
from qplug.export.formats.fallback import DecodedWeight, plain_weight, traced
from qplug.export.formats.lowering import Format
from qplug.quantization.plan import Decision
from qplug.quantization.quantizers import UniformQuantizer


class _Linear(nn.Module):
    """Inputs of both operators, and the bits of those that the file holds in narrower integers."""

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
        """(codes − z)·s; ``codes`` are already transposed."""
        inputs = (codes, self.scale, self.zero_point)
        return symbolic("DequantizeLinear", inputs, self.attributes, dtype=torch.float32, shape=codes.shape)


class QdqActivation(_Linear):
    """QuantizeLinear, a Clip if the type has more integers than the quantizer, DequantizeLinear."""

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
        """Fake-quantize by clamp(round(x/s) + z, l, h). The quantizer rounds x/s + z instead."""
        codes = self.codes(x)
        kind = codes.dtype
        if self.clips:
            codes = symbolic("Clip", (codes, self.low, self.high), dtype=kind, shape=x.shape)
        # The integers are transposed, not the values: ONNX Runtime fails on a Transpose around the pair, or moves it.
        return self.dequantize(codes.transpose(-2, -1) if self.transposed else codes)

    def codes(self, x: Tensor) -> Tensor:
        """QuantizeLinear."""
        kind, inputs = self.zero_point.dtype, (x, self.scale, self.zero_point)
        return symbolic("QuantizeLinear", inputs, dtype=kind, shape=x.shape)


class Shifted(nn.Module):
    """x/s + z before a QuantizeLinear of scale 1: z is added before rounding, as in the quantizer.

    Images have 256 values. A range may just hold them, such as −1 … 1 with the zero point 127.5 rounded to 128. Every
    pixel is then a tie, and half of them would round the other way if z were added after rounding.
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
    """``QdqActivation`` with integers from ``Shifted``."""

    def __init__(self, quantizer: UniformQuantizer, affine: Affine, transposed: bool) -> None:
        super().__init__(quantizer, affine, transposed)
        self.shifted = Shifted(quantizer, affine)

    def codes(self, x: Tensor) -> Tensor:
        """Div, Add, QuantizeLinear."""
        out: Tensor = self.shifted(x)
        return out


class QdqWeight(_Linear):
    """A weight's integers, and DequantizeLinear."""

    dtype = torch.float32  # forwards of transformers read it, as of a Parameter

    codes: Tensor

    def __init__(self, codes: Tensor, affine: Affine, transposed: bool) -> None:
        super().__init__(affine, transposed)
        codes = codes.to(affine.zero_point.dtype)
        self.register_buffer("codes", codes.t().contiguous() if transposed else codes)
        self.narrow |= {"codes": (affine.bits, affine.signed)}

    def forward(self) -> Tensor:
        """The values, float32."""
        return self.dequantize(self.codes)


class Qdq(Format):
    """Uniform quantizers as QuantizeLinear and DequantizeLinear, others as plain operators.

    Bytes of activations are unsigned. Bytes of a weight are unsigned if its products with them could saturate. The
    file's results therefore do not depend on the processor.

    Args:
        widths: bits that integers may have in the file, ascending.
        on_grid: operations that read the model's own input, whose values may be ties.
        saturating: keep the sign of each quantizer's bytes, which is faster with VNNI and wrong on x86 without it.
    """

    def __init__(
        self, widths: tuple[int, ...] = (4, 8, 16), on_grid: Container[str] = (), saturating: bool = False
    ) -> None:
        self.widths, self.on_grid, self.saturating = widths, on_grid, saturating

    def activation(self, decision: Decision, transposed: bool) -> nn.Module:
        """See ``Format``. Runtimes clip integers of 8 bits, and of no other width.

        A quantizer with several scales becomes plain operators, because no runtime multiplies such integers. ONNX
        Runtime fuses their DequantizeLinear with a matmul nevertheless, and then fails.
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
        """Whether an activation's bytes are signed in the file."""
        return self.saturating and quantizer.signed

    def affine_activation(
        self, decision: Decision, quantizer: UniformQuantizer, affine: Affine, transposed: bool
    ) -> nn.Module:
        """The pair of operators with the scale, zero point and integers of ``affine``."""
        kind = ShiftedActivation if self.ties(decision, quantizer) else QdqActivation
        return kind(quantizer, affine, transposed)

    def ties(self, decision: Decision, quantizer: UniformQuantizer) -> bool:
        """Whether values may be ties that a zero point rounds one way or the other."""
        return decision.site.module in self.on_grid and not quantizer.symmetric

    def weight(self, decision: Decision, weight: Tensor, transposed: bool, beside: nn.Module | None) -> nn.Module:
        """See ``Format``.

        ONNX Runtime has a kernel for float values by dequantized weights of 4 bits or fewer. It rounds the values to
        8 bits, an error of 6e-3 of the norm on DeiT-Ti. Such weights are decoded by plain operators instead.
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
