"""The region-wise quantizer: several steps for several ranges of one tensor, each a power of two times the base step.

OPT-m (three regions) and two-scaled quantizers such as TSPTQ-ViT's V-2SF (two) are settings of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qplug.quantization.quantizers.base import Quantizer, clamp_ste, round_ste

TABLE_LIMIT = 1 << 16
"""Base integers up to which ``infer`` looks values up instead of computing every region."""

BLOCK = 1 << 19
"""Elements that ``infer`` looks up at a time, so that what lies between stays in the cache."""

BYTE = 256
"""Values of a byte."""


@dataclass(frozen=True)
class Region:
    """The base integers from ``start`` up to the next region's start, stored as ``low … high`` times 2^shift."""

    start: int
    shift: int
    low: int
    high: int


class RegionQuantizer(Quantizer):
    """x → q = round(x/s) → the region that holds q → code = clamp(⌊q/2^shift + 1/2⌋, low, high) → s·2^shift·code.

    This is MPTQ-ViT's Section 3.2: q is the ``b + m`` bit integer, a region keeps a slice of its bits with the first
    truncated bit rounded, and a carry out of the slice saturates (the paper does not say what becomes of the carry).

    Args:
        step: () float32, the base step s.
        regions: ordered by ``start``; the first also takes everything below its start.
        bits: bits of a stored code, region and sign indices included.
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
        """The same regions of a base step ``factor`` times as long."""
        return RegionQuantizer(self.step * factor, self.regions, self.bits)

    def codes(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """For base integers ``q`` (float): the stored code of each and its region's shift, both as float."""
        code = shift = torch.zeros_like(q)
        for region in self.regions:
            here = torch.clamp(torch.floor(q / (1 << region.shift) + 0.5), region.low, region.high)
            inside = q >= region.start if region is not self.regions[0] else torch.ones_like(q, dtype=torch.bool)
            code = torch.where(inside, here, code)
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
        """As ``forward``, by a table over the base integers, which costs one gather however many regions there are."""
        count = self.most - self.least + 1
        if count > TABLE_LIMIT:
            result: Tensor = self.forward(x)
            return result
        if self._table is None or self._table.device != x.device:
            self._table = self._values(torch.arange(self.least, self.most + 1, device=x.device, dtype=torch.float32))
        plain = x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()
        if plain and count < BYTE and x.numel() >= BLOCK and x.numel() % 2 == 0:
            return self._infer_pairs(x, self._table)
        index = self._base(x).sub_(self.least).to(torch.int32)
        return self._table.to(x.dtype).index_select(0, index.reshape(-1)).view(x.shape)

    def _base(self, x: Tensor) -> Tensor:
        return torch.div(x, self.step).round_().clamp_(self.least, self.most)

    def _infer_pairs(self, x: Tensor, table: Tensor) -> Tensor:
        """By a table over pairs of neighbours, each integer a byte: half as many gathers, which run on one core.

        A NaN becomes byte 0, which stays NaN.
        """
        if self._pairs is None:
            values = torch.full((BYTE,), torch.nan)
            values[1 : len(table) + 1] = table
            both = torch.stack([values.expand(BYTE, -1), values.unsqueeze(1).expand(-1, BYTE)], -1)  # low byte first
            self._pairs = both.view(torch.float64).flatten()
        out = torch.empty_like(x)
        for part, place in zip(torch.split(x.view(-1), BLOCK), torch.split(out.view(-1), BLOCK), strict=True):
            index = self._base(part).sub_(self.least - 1).to(torch.uint8).view(torch.uint16).to(torch.int32)
            torch.index_select(self._pairs, 0, index, out=place.view(torch.float64))
        return out

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The place of each value among all values of the regions, the smallest first [ours].

        The papers store the region's index and its code, which takes as many bits.
        """
        code, shift = self.codes(self._base(x))
        return torch.searchsorted(self._levels(x.device), code * torch.exp2(shift)).to(torch.int32)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """The values at these places."""
        return self._levels(codes.device)[codes] * self.step

    def _levels(self, device: torch.device) -> Tensor:
        """Every value in base steps, ascending, at most 2^bits of them, float32."""
        code, shift = self.codes(torch.arange(self.least, self.most + 1, device=device, dtype=torch.float32))
        levels: Tensor = torch.unique(code * torch.exp2(shift))
        if len(levels) > 1 << self.bits:
            raise NotImplementedError(f"{len(levels)} values do not fit {self.bits} bits")
        return levels

    def storage_bits(self, shape: tuple[int, ...]) -> int:
        """The codes, the base step at 32 bits, and 8 bits for each region's shift."""
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
        """The quantizer that ``to_dict`` described."""
        return cls(data["step"], tuple(Region(*region) for region in data["regions"]), data["bits"])

    def describe(self) -> str:
        """For example ``regions int4 2^(0, 3, 5)``: the bits and the shifts."""
        return f"regions int{self.bits} 2^({', '.join(str(region.shift) for region in self.regions)})"
