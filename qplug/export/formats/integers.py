"""Integer products written out: what ONNX Runtime executes fastest on a CPU, in ONNX's own operators.

Measured on ViT-Ti with AVX512 VNNI, ONNX Runtime 1.32, the reasons for each form:

- x·W + b as MatMulInteger, Cast, Mul, Add becomes one node, bias included; of a MatMul between dequantized operands the
  sum with the bias is a pass of its own. The runtime fuses only where the scale is no constant, hence ``_Scale``.
- Unsigned left operands and signed right ones: u8 · u8 takes over twice as long with VNNI, s8 · s8 in linears. Without
  VNNI such products saturate: ``choice`` lets the file choose.
- Integers, not floats, pass through what only moves values.
- A patch embedding as a product of patches: convolutions stay in float unless their outputs are integers too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from qplug.core.types import Role
from qplug.export.formats.qdq import SHIFT, Affine, Qdq, Shifted
from qplug.quantization.plan import Decision
from qplug.quantization.quantizers import UniformQuantizer


def eight_bits(decision: Decision | None, signed: bool) -> Affine | None:
    """Scale and zero point of an activation that has one scale and fills 8 bits; ``None`` of any other."""
    quantizer = decision.quantizer if decision else None
    if type(quantizer) is not UniformQuantizer or quantizer.bits != 8:
        return None
    affine = Affine.of(quantizer, 8)
    return affine.with_sign(signed) if affine and affine.axis is None else None


class Codes(nn.Module):
    """QuantizeLinear."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        self.register_buffer("scale", affine.scale)
        self.register_buffer("zero_point", affine.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """Values → integers."""
        inputs = (x, self.scale, self.zero_point)
        return symbolic("QuantizeLinear", inputs, dtype=self.zero_point.dtype, shape=x.shape)


class Values(Codes):
    """DequantizeLinear."""

    def forward(self, x: Tensor) -> Tensor:
        """Integers → values."""
        return symbolic("DequantizeLinear", (x, self.scale, self.zero_point), dtype=torch.float32, shape=x.shape)


class _Scale(nn.Module):
    """s_x·s_w, of the one integer 1 dequantized with s_x: a constant that the runtime does not fold before it fuses."""

    codes: Tensor

    def __init__(self, of_input: Tensor, of_weight: Tensor) -> None:
        super().__init__()
        self.one = Values(Affine(of_input, torch.tensor(0, dtype=torch.int8), None, 8, True))
        self.register_buffer("codes", torch.tensor(1, dtype=torch.int8))
        self.register_buffer("of_weight", of_weight)

    def forward(self) -> Tensor:
        """() or (O,) float32."""
        scale: Tensor = self.one(self.codes) * self.of_weight
        return scale


class IntegerProduct(nn.Module):
    """(x − z)·W·s_x·s_w + b from integers x.

    Args:
        affine: of x.
        codes: W, (I, O) int8.
        scale: s_w, () or (O,).
        bias: (O,) float32, or None.
    """

    codes: Tensor
    zero_point: Tensor
    bias: Tensor | None

    def __init__(self, affine: Affine, codes: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("zero_point", affine.zero_point)
        self.register_buffer("codes", codes.contiguous())
        self.scale = _Scale(affine.scale, scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) integers → (…, O) float32."""
        shape = (*x.shape[:-1], self.codes.shape[-1])
        summed = symbolic("MatMulInteger", (x, self.codes, self.zero_point), dtype=torch.int32, shape=shape)
        out: Tensor = summed.to(torch.float32) * self.scale()
        return out if self.bias is None else out + self.bias

    def part(self, start: int, stop: int, factor: float = 1.0) -> IntegerProduct:
        """Of the outputs from ``start`` to ``stop``, ``factor`` times as large."""
        scale = self.scale.of_weight
        assert isinstance(scale, Tensor)
        some = scale[start:stop] if scale.dim() else scale
        affine = Affine(self.scale.one.scale, self.zero_point, None, 8, False)
        bias = None if self.bias is None else self.bias[start:stop] * factor
        return IntegerProduct(affine, self.codes[:, start:stop], some * factor, bias)


class IntegerLinear(nn.Module):
    """A linear: its input as unsigned integers, then the product."""

    def __init__(self, codes: nn.Module, product: IntegerProduct) -> None:
        super().__init__()
        self.codes, self.product = codes, product

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        out: Tensor = self.product(self.codes(x))
        return out


class IntegerPatches(nn.Module):
    """A convolution whose patches do not overlap, as the product that it is."""

    def __init__(self, original: nn.Conv2d, codes: nn.Module, product: IntegerProduct) -> None:
        super().__init__()
        self.codes, self.product = codes, product
        self.height, self.width = (int(size) for size in original.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, O, H/h, W/w)."""
        channels, rows, columns = x.shape[1], x.shape[2] // self.height, x.shape[3] // self.width
        if x.shape[2:] != (rows * self.height, columns * self.width):  # a convolution leaves the rest unread
            x = x[..., : rows * self.height, : columns * self.width]
        patches = self.codes(x).reshape(-1, channels, rows, self.height, columns, self.width)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(-1, rows * columns, channels * self.height * self.width)
        out: Tensor = self.product(patches)
        return out.transpose(1, 2).reshape(-1, out.shape[-1], rows, columns)


class Integers(Qdq):
    """As ``Qdq``; products of 8-bit integers with a weight as above."""

    def signed(self, decision: Decision, quantizer: UniformQuantizer) -> bool:
        """Right operands of attention's matmuls alone."""
        return decision.site.role == "rhs"

    def operation(self, original: nn.Module, decisions: Mapping[Role, Decision]) -> nn.Module | None:
        """See ``Format``."""
        decision = decisions.get("input")
        affine = eight_bits(decision, signed=False)
        if decision is None or affine is None or type(original) not in (nn.Linear, nn.Conv2d):
            return None
        product = _product(original, decisions.get("weight"), affine)
        if product is None:
            return None
        quantizer = decision.quantizer
        assert isinstance(quantizer, UniformQuantizer)
        codes = Shifted(quantizer, affine) if self.ties(decision, quantizer) else Codes(affine)
        if isinstance(original, nn.Conv2d):
            return IntegerPatches(original, codes, product)
        return IntegerLinear(codes, product)


def _product(original: nn.Module, decision: Decision | None, affine: Affine) -> IntegerProduct | None:
    """The weight's integers where they are signed, symmetric and of 8 bits or less, and patches lie side by side."""
    assert isinstance(original, (nn.Linear, nn.Conv2d))
    quantizer = decision.quantizer if decision else None
    if type(quantizer) is not UniformQuantizer or not quantizer.symmetric or quantizer.bits > 8:
        return None
    if isinstance(original, nn.Conv2d) and not _side_by_side(original):
        return None
    weight = original.weight.detach()
    codes = (quantizer.encode(weight) + quantizer.low).flatten(1).t().cpu()
    if int(codes.max()) > SHIFT - 1:  # unsigned, of a weight without negative values
        return None
    scale = quantizer.scale.cpu()
    if scale.numel() > 1 and scale.numel() != len(weight):
        return None
    return IntegerProduct(
        affine, codes.to(torch.int8), scale.flatten() if scale.numel() > 1 else scale.reshape(()), original.bias
    )


def _side_by_side(conv: nn.Conv2d) -> bool:
    """Whether it is a patch embedding: a pointwise convolution as a product would transpose more than it multiplies."""
    plain = conv.groups == 1 and set(conv.dilation) == {1} and conv.padding in ((0, 0), "valid")
    return plain and tuple(conv.kernel_size) == tuple(conv.stride) != (1, 1)
