"""Greedy MP: mixed precision by greedy removal of single bits."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

import qplug
from qplug import Site, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import SqnrTable

START = 8


class GreedyMp(Technique):
    """Start at 8 bits and repeatedly remove one bit from the site of largest alpha, until the average is reached.

    alpha_l = SQNR_{b−1}(X_l)·log(numel(X_l)) (Eq. 10), first for weights, then for activations. The SQNR is measured on
    the float model, so the two stages are independent, and their order, which the paper leaves open, has no effect. For
    a negative SQNR, the printed product would prefer small layers, so the SQNR is divided by the logarithm instead
    [ours]. In a tie, the site that the model computes first is chosen. The paper does not state two choices, which are
    options: the average counts elements (or layers), and no site has fewer than ``min_bits``. Sites whose bits an
    override fixes are neither changed nor counted. numel counts one image. OPT-m provides the ranges for the SQNR of
    post-GELU sites (uniform at 2 bits, where OPT-m has no magnitude bit).
    """

    paper = "Tai and Wu 2024, MPTQ-ViT, section 3.3, Eq. 9, 10; supplement B for metric: sqnr"
    allocates = ("min_bits",)

    class Config(qplug.Config):
        """The targets."""

        use: Literal["mptq_vit.greedy_mp"] = Field("mptq_vit.greedy_mp", description="name of the technique")
        weights: float = Field(description="average bits of weights to reach", ge=2.0, le=8.0)
        activations: float = Field(description="average bits of activations to reach", ge=2.0, le=8.0)
        average: Literal["elements", "layers"] = Field("elements", description="unit that the average counts")
        metric: Literal["product", "sqnr"] = Field("product", description="Eq. 10, or supplement B's SQNR alone")
        min_bits: int = Field(2, ge=2, le=8, description="fewest bits of a site")

        @model_validator(mode="after")
        def _reachable(self) -> GreedyMp.Config:
            if min(self.weights, self.activations) < self.min_bits:
                raise ValueError(f"an average below min_bits = {self.min_bits} cannot be reached")
            return self

    @hookimpl
    def qplug_allocate_bits(self, table: SqnrTable) -> Mapping[str, int]:
        """Allocate weights, then activations."""
        weights = self._reduce(table.weights, table, self.config.weights)
        return weights | self._reduce(table.activations, table, self.config.activations)

    def _reduce(self, sites: Sequence[Site], table: SqnrTable, target: float) -> dict[str, int]:
        """Site → bits, by a heap with one entry per site: (−alpha of its next step, model order)."""
        bits = [START] * len(sites)
        size = [site.numel if self.config.average == "elements" else 1 for site in sites]
        excess, slack = sum(size) * (START - target), 1e-9 * sum(size)

        def entry(i: int) -> tuple[float, int]:
            return -self._alpha(table.sqnr_db(sites[i], bits[i] - 1), sites[i].numel), i

        heap = [entry(i) for i in range(len(sites))] if self.config.min_bits < START else []
        heapq.heapify(heap)
        while excess > slack and heap:
            _, i = heapq.heappop(heap)
            bits[i] -= 1
            excess -= size[i]
            if bits[i] > self.config.min_bits:
                heapq.heappush(heap, entry(i))
        return {site.name: b for site, b in zip(sites, bits, strict=True)}

    def _alpha(self, sqnr_db: float, numel: int) -> float:
        if self.config.metric == "sqnr":
            return sqnr_db
        weight = math.log(max(numel, 2))
        return sqnr_db * weight if sqnr_db >= 0 else sqnr_db / weight
