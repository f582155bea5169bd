"""Modules of integer products in ONNX's own operators, in the form that ONNX Runtime executes fastest on a CPU.

The form rests on measurements on ViT-Ti with AVX512 VNNI, ONNX Runtime 1.32:

- x·W + b as MatMulInteger, Cast, Mul, Add becomes one node, bias included. For a MatMul of dequantized operands, the
  runtime adds the bias in a pass of its own. It fuses only if the scale is no constant, which ``_Scale`` ensures.
- Left operands are unsigned and right ones signed: with VNNI, u8 · u8 takes over twice as long, and so does s8 · s8 in
  linears. Without VNNI such products saturate, and ``choice`` lets the file choose.
- Operators that only move values receive integers, not floats.
- A patch embedding is a product of patches: convolutions stay in float unless their outputs are integers too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from qplug.export.formats.affine import Affine


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
    """s_x·s_w, from the integer 1 dequantized with s_x. The runtime fuses nodes before it folds this constant."""

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
        affine: scale s_x and zero point z of x.
        codes: W, (I, O) int8.
        scale: s_w, () or (O,).
        bias: b, (O,) float32, or None.
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
        """The product for the outputs from ``start`` to ``stop``, multiplied by ``factor``."""
        scale = self.scale.of_weight
        assert isinstance(scale, Tensor)
        some = scale[start:stop] if scale.dim() else scale
        affine = Affine(self.scale.one.scale, self.zero_point, None, 8, False)
        bias = None if self.bias is None else self.bias[start:stop] * factor
        return IntegerProduct(affine, self.codes[:, start:stop], some * factor, bias)


class IntegerLinear(nn.Module):
    """A linear: quantizes its input to unsigned integers, then multiplies."""

    def __init__(self, codes: nn.Module, product: IntegerProduct) -> None:
        super().__init__()
        self.codes, self.product = codes, product

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        out: Tensor = self.product(self.codes(x))
        return out


class IntegerPatches(nn.Module):
    """A convolution whose patches do not overlap, as a product of patches."""

    def __init__(self, original: nn.Conv2d, codes: nn.Module, product: IntegerProduct) -> None:
        super().__init__()
        self.codes, self.product = codes, product
        self.height, self.width = (int(size) for size in original.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, O, H/h, W/w)."""
        channels, rows, columns = x.shape[1], x.shape[2] // self.height, x.shape[3] // self.width
        if x.shape[2:] != (rows * self.height, columns * self.width):  # a convolution ignores the rest too
            x = x[..., : rows * self.height, : columns * self.width]
        patches = self.codes(x).reshape(-1, channels, rows, self.height, columns, self.width)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(-1, rows * columns, channels * self.height * self.width)
        out: Tensor = self.product(patches)
        return out.transpose(1, 2).reshape(-1, out.shape[-1], rows, columns)
