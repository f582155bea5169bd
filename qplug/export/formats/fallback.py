"""Quantized tensors as plain operators: the fallback of every format, because all formats hold tensor arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from qplug.quantization.plan import Decision
from qplug.quantization.quantizers import Quantizer, RegionQuantizer, UniformQuantizer

LARGEST_TABLE = 1 << 16
"""Largest number of base integers of a region-wise quantizer whose values are looked up in a table."""


class Traced(nn.Module):
    """Any quantizer, as the operators of its own ``forward``. Plugins therefore need no code for file formats."""

    def __init__(self, quantizer: Quantizer, transposed: bool) -> None:
        super().__init__()
        self.quantizer, self.transposed = copy.deepcopy(quantizer).cpu(), transposed

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize."""
        values = self._values(x)
        return values.transpose(-2, -1) if self.transposed else values

    def _values(self, x: Tensor) -> Tensor:
        if type(self.quantizer) is not UniformQuantizer:
            values: Tensor = self.quantizer(x)
            return values
        place = x / self.quantizer.scale
        if self.quantizer.symmetric:
            return place.round().clamp(self.quantizer.low, self.quantizer.high) * self.quantizer.scale
        codes = (place + self.quantizer.zero_point).round().clamp(self.quantizer.low, self.quantizer.high)
        return (codes - self.quantizer.zero_point) * self.quantizer.scale


class Lookup(nn.Module):
    """A region-wise quantizer as a table over its base integers: four operators for any number of regions."""

    step: Tensor
    table: Tensor

    def __init__(self, quantizer: RegionQuantizer, transposed: bool) -> None:
        super().__init__()
        self.least, self.most, self.transposed = quantizer.least, quantizer.most, transposed
        step = quantizer.step.cpu()
        integers = torch.arange(self.least, self.most + 1, dtype=torch.float32)
        self.register_buffer("step", step)
        self.register_buffer("table", copy.deepcopy(quantizer).cpu().infer(integers * step))

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize."""
        values = self.table[(x / self.step).round().clamp(self.least, self.most).to(torch.int64) - self.least]
        return values.transpose(-2, -1) if self.transposed else values


def traced(quantizer: Quantizer, transposed: bool) -> nn.Module:
    """A module from an activation to its quantized values, made of operators that every format has."""
    if type(quantizer) is RegionQuantizer and quantizer.most - quantizer.least < LARGEST_TABLE:
        return Lookup(quantizer, transposed)
    return Traced(quantizer, transposed)


class DecodedWeight(nn.Module):
    """A weight as its codes and the operators of its quantizer's own ``decode``.

    Args:
        quantizer: of the weight.
        codes: of the weight's shape, int32 in 0 … 2^bits − 1.
        transposed: whether the values are returned transposed.
    """

    dtype = torch.float32  # forwards of transformers read it, as of a Parameter

    codes: Tensor

    def __init__(self, quantizer: Quantizer, codes: Tensor, transposed: bool) -> None:
        super().__init__()
        self.quantizer, self.transposed = copy.deepcopy(quantizer).cpu(), transposed
        self.register_buffer("codes", codes.to(torch.uint8 if quantizer.bits <= 8 else torch.uint16))
        self.narrow = {"codes": (quantizer.bits, False)}

    def forward(self) -> Tensor:
        """The values, float32."""
        values = self.quantizer.decode(self.codes.to(torch.int32))
        return values.t() if self.transposed else values


class FloatWeight(nn.Module):
    """A weight in float32, because it has no quantizer, or its quantizer has no codes."""

    dtype = torch.float32  # forwards of transformers read it, as of a Parameter

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values.detach().contiguous())

    def forward(self) -> Tensor:
        """The weight."""
        return self.values


def plain_weight(
    decision: Decision, weight: Tensor, transposed: bool, decoded: Callable[[Quantizer, Tensor, bool], nn.Module]
) -> nn.Module:
    """A weight as ``decoded`` of its codes, or as a ``FloatWeight`` if its quantizer has no codes."""
    quantizer = decision.quantizer
    try:
        codes = quantizer.encode(weight)
    except NotImplementedError:
        values = quantizer.infer(weight)
        return FloatWeight(values.t() if transposed else values)
    return decoded(quantizer, codes, transposed)
