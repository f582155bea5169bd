"""Modules of quantized operations, put together from the modules of their operands."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qplug.models.attention import MatMul

Convolution = nn.Conv1d | nn.Conv2d


class LoweredLinear(nn.Module):
    """x·W + b with W as (I, O), the layout in which runtimes multiply integers without transposing them."""

    def __init__(self, original: nn.Linear, operands: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.input = operands.get("input", nn.Identity())
        self.weight, self.bias = operands["weight"], original.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        out: Tensor = self.input(x).matmul(self.weight())
        return out if self.bias is None else out + self.bias


class LoweredConv(nn.Module):
    """A convolution of quantized operands, with its bias as an addition of its own.

    ONNX Runtime would turn an operator's own bias into 32-bit integers with the step s_x·s_w. Batch normalization can
    all but switch off a channel, and s_w is then tiny. Such a channel loses its bias: on MobileNetV1, 4 % of the first
    output.
    """

    def __init__(self, original: Convolution, operands: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.input, self.weight = operands.get("input", nn.Identity()), operands["weight"]
        self.bias, self.geometry = original.bias, copy.copy(original)
        self.geometry._parameters = {"weight": None, "bias": None}  # a traced program would hold the float weight too

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, …) → (B, O, …); of images (B, C, H, W) → (B, O, H', W')."""
        out: Tensor = self.geometry._conv_forward(self.input(x), self.weight(), None)
        return out if self.bias is None else out + self.bias[(slice(None), *[None] * (out.dim() - 2))]


class LoweredMatMul(nn.Module):
    """A matmul of attention with quantized operands. The right one is transposed before the product."""

    def __init__(self, original: MatMul, operands: Mapping[str, nn.Module]) -> None:
        super().__init__()
        plain = Transposed() if original.transpose_rhs else nn.Identity()
        self.lhs, self.rhs = operands.get("lhs", nn.Identity()), operands.get("rhs", plain)

    def forward(self, lhs: Tensor, rhs: Tensor) -> Tensor:
        """As ``MatMul``."""
        return torch.matmul(self.lhs(lhs), self.rhs(rhs))


class Transposed(nn.Module):
    """Swaps an activation's last two axes."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, N, D) → (…, D, N)."""
        return x.transpose(-2, -1)


class LoweredInput(nn.Module):
    """A norm or Softmax with a quantized input."""

    def __init__(self, original: nn.Module, operands: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.input, self.original = operands["input"], original

    def forward(self, x: Tensor, *others: Tensor | None) -> Tensor:
        """The original on its quantized input. ``others``, such as a mask, are not quantized."""
        out: Tensor = self.original(self.input(x), *others)
        return out


def operands(lowered: nn.Module) -> int:
    """How many arguments of a lowered operation are quantized: two of a matmul, one of any other."""
    return 2 if isinstance(lowered, LoweredMatMul) else 1
