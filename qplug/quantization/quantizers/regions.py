"""The region-wise quantizer: each range of values has its own step, a power of two times the base step.

OPT-m (three regions) and two-scaled quantizers such as TSPTQ-ViT's V-2SF (two regions) are instances of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qplug.quantization.quantizers.base import Quantizer, clamp_ste, round_ste

TABLE_LIMIT = 1 << 16
"""Number of base integers up to which ``infer`` uses a table instead of computing every region."""

LOOKUP_BLOCK = 1 << 19
"""Elements per table lookup of ``infer``, so that intermediate tensors stay in the processor's cache."""

BYTE_VALUES = 256
"""Number of values of a byte."""


@dataclass(frozen=True)
class Region:
    """The base integers from ``start`` to the next region's start, represented by codes low … high times 2^shift."""

    start: int
    shift: int
    low: int
    high: int


class RegionQuantizer(Quantizer):
    """x → q = round(x/s) → the region that holds q → code = clamp(⌊q/2^shift + 1/2⌋, low, high) → s·2^shift·code.

    This is MPTQ-ViT's Section 3.2: q is the integer of ``b + m`` bits. A region stores a slice of the bits of q, and
    rounds by the first truncated bit. A carry out of the slice saturates; the paper does not define this case.

    Args:
        step: () float32, the base step s.
        regions: ordered by ``start``; the first region also covers all integers below its start.
        bits: bits of a stored code, including the region index and the sign.
    """

    kind: ClassVar[str] = "regions"
    step: Tensor
    _table: Tensor | None
    _pairs: Tensor | None

    def __init__(self, step: Tensor | float, regions: tuple[Region, ...], bits: int) -> None:
        super().__init__()
        self.bits, self.regions = bits, regions
        self.register_buffer("step", torch.as_tensor(step, dtype=torch.float32).detach().clone())
        self.least = min(regions[0].low << regions[0].shift, 0)
        self.most = max(region.high << region.shift for region in regions)
        self.register_buffer("_table", None, persistent=False)
        self.register_buffer("_pairs", None, persistent=False)

    def scaled(self, factor: Tensor | float) -> RegionQuantizer:
        """The same regions with a base step ``factor`` times as large."""
        return RegionQuantizer(self.step * factor, self.regions, self.bits)

    def codes(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The stored codes of the base integers ``q`` (float) and the shifts of their regions, both as float."""
        code = shift = torch.zeros_like(q)
        for region in self.regions:
            region_code = torch.clamp(torch.floor(q / (1 << region.shift) + 0.5), region.low, region.high)
            inside = q >= region.start if region is not self.regions[0] else torch.ones_like(q, dtype=torch.bool)
            code = torch.where(inside, region_code, code)
            shift = torch.where(inside, torch.full_like(q, region.shift), shift)
        return code, shift

    def _values(self, q: Tensor) -> Tensor:
        code, shift = self.codes(q)
        return code * torch.exp2(shift) * self.step

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize; gradients pass inside the range and stop outside."""
        q = clamp_ste(round_ste(x / self.step), self.least, self.most)
        values = self._values(q.detach())
        return q * self.step + (values - q * self.step).detach() if x.requires_grad else values

    @torch.no_grad()
    def infer(self, x: Tensor) -> Tensor:
        """As ``forward``, by a table over the base integers; its cost does not depend on the number of regions."""
        count = self.most - self.least + 1
        if count > TABLE_LIMIT:
            result: Tensor = self.forward(x)
            return result
        if self._table is None or self._table.device != x.device:
            self._table = self._values(torch.arange(self.least, self.most + 1, device=x.device, dtype=torch.float32))
        plain = x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()
        if plain and count < BYTE_VALUES and x.numel() >= LOOKUP_BLOCK and x.numel() % 2 == 0:
            return self._infer_pairs(x, self._table)
        index = self._base(x).sub_(self.least).to(torch.int32)
        return self._table.to(x.dtype).index_select(0, index.reshape(-1)).view(x.shape)

    def _base(self, x: Tensor) -> Tensor:
        return torch.div(x, self.step).round_().clamp_(self.least, self.most)

    def _infer_pairs(self, x: Tensor, table: Tensor) -> Tensor:
        """``infer`` by a table over pairs of neighbouring elements, which halves the number of gathers.

        A gather runs on one core. Each base integer is a byte; byte 0 represents NaN.
        """
        if self._pairs is None:
            values = torch.full((BYTE_VALUES,), torch.nan)
            values[1 : len(table) + 1] = table
            low_bytes, high_bytes = values.expand(BYTE_VALUES, -1), values.unsqueeze(1).expand(-1, BYTE_VALUES)
            self._pairs = torch.stack([low_bytes, high_bytes], -1).view(torch.float64).flatten()
        out = torch.empty_like(x)
        blocks = torch.split(x.view(-1), LOOKUP_BLOCK), torch.split(out.view(-1), LOOKUP_BLOCK)
        for block, result in zip(*blocks, strict=True):
            index = self._base(block).sub_(self.least - 1).to(torch.uint8).view(torch.uint16).to(torch.int32)
            torch.index_select(self._pairs, 0, index, out=result.view(torch.float64))
        return out

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The index of each value among all values of the regions in ascending order [ours].

        The papers store the region's index and its code, which takes the same number of bits.
        """
        code, shift = self.codes(self._base(x))
        return torch.searchsorted(self._levels(x.device), code * torch.exp2(shift)).to(torch.int32)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """The values with these indices."""
        return self._levels(codes.device)[codes] * self.step

    def _levels(self, device: torch.device) -> Tensor:
        """All values in base steps, ascending, float32; at most 2^bits values."""
        code, shift = self.codes(torch.arange(self.least, self.most + 1, device=device, dtype=torch.float32))
        levels: Tensor = torch.unique(code * torch.exp2(shift))
        if len(levels) > 1 << self.bits:
            raise NotImplementedError(f"{len(levels)} values do not fit {self.bits} bits")
        return levels

    def storage_bits(self, shape: tuple[int, ...]) -> int:
        """Bits of the codes, 32 bits of the base step, and 8 bits for each region's shift."""
        count = 1
        for size in shape:
            count *= size
        return count * self.bits + 32 + 8 * len(self.regions)

    def to_dict(self) -> dict[str, Any]:
        """The base step and the regions as JSON values."""
        regions = [[region.start, region.shift, region.low, region.high] for region in self.regions]
        return {"kind": self.kind, "bits": self.bits, "step": self.step.item(), "regions": regions}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RegionQuantizer:
        """The quantizer with the values of ``to_dict``."""
        return cls(data["step"], tuple(Region(*region) for region in data["regions"]), data["bits"])

    def describe(self) -> str:
        """For example ``regions int4 2^(0, 3, 5)``: the bits and the shifts."""
        return f"regions int{self.bits} 2^({', '.join(str(region.shift) for region in self.regions)})"
