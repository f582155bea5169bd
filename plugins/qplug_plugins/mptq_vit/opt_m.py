"""OPT-m: region-wise scales for post-GELU activations, with ratios searched on the data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import Granularity, QuantizerChoice, QuantSpec, Site, SiteKind, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import RegionQuantizer, SiteStats


def regions(s0: float, m0: int, m1: int, bits: int, split: str) -> RegionQuantizer:
    """The three regions of section 3.2 at ``bits`` bits, s1 = s0·2^m0 and s2 = s0·2^m1 (Eq. 6).

    Region and sign indices need two bits in regions 1 (negative) and 2 (small positive), and one in region 3. Regions 2
    and 3 meet at 2^(m0 + b − 2), where region 2's codes end. At 6 bits, the paper prints half of this, 2^(m0 + 3),
    which contradicts its stored bits, [m0 + 3 : m0]; ``split="paper"`` follows the print. The numbers of section 4.3
    are a test.
    """
    from qplug import Region, RegionQuantizer

    small, large = (1 << (bits - 2)) - 1, (1 << (bits - 1)) - 1
    bound = 1 << (m0 + bits - (2 if split == "consistent" else 3))
    return RegionQuantizer(
        s0,
        (Region(-(1 << 30), 0, -small, 0), Region(0, m0, 0, small), Region(bound, m1, 0, large)),
        bits,
    )


class OptM(Technique):
    """Optimal scaling factor ratio search for post-GELU activations.

    x_low is the average over images of the minimum, and x_up the 99.95 % percentile. m1 follows from both (Eq. 7). The
    Hessian-guided metric then chooses m0 in {0 … m1 − 1} (Eq. 8) and s0.

    Deviations: the printed candidates of s0 divide [0, 1.2·max|X|/2^(b−1)]. This interval contains 0 and depends on the
    positive maximum, although s0 scales the negative region. Here the candidates lie around Eq. 7's s0;
    ``s0_grid: paper`` uses the printed ones without 0 [ours]. If m1 ≤ 0 leaves no candidate of m0, or b = 2 no
    magnitude bit, the site gets a uniform quantizer, and the plan records it. The same applies if a uniform quantizer
    has a smaller error on the sample, unless ``fallback: false`` [ours]. x_up is the percentile of the sampled tokens,
    not of all values. ViT-Ti's few massive activations are far above it, so m1 is also searched with the maximum,
    unless ``x_up: paper`` [ours]. As printed, region 3 contains code 0, to which values just above the bound are
    rounded if m1 > m0 + b − 1; the search over m0 avoids this if it increases the error. A value that rounding moves
    out of region 2 gets that region's last code [ours].
    """

    paper = "Tai and Wu 2024, MPTQ-ViT, section 3.2, Eq. 6–8"
    gradients = True

    class Config(qplug.Config):
        """The split and the search."""

        use: Literal["mptq_vit.opt_m"] = Field("mptq_vit.opt_m", description="name of the technique")
        split: Literal["consistent", "paper"] = Field(
            "consistent", description="lower bound of region 3: 2^(m0+b−2), or 2^(m0+b−3) as printed"
        )
        s0_grid: Literal["eq7", "paper"] = Field(
            "eq7", description="candidates of s0: around Eq. 7's value, or as printed"
        )
        candidates: int = Field(100, ge=2, le=1000, description="candidates of s0")
        percentile: float = Field(99.95, gt=50.0, le=100.0, description="x_up, percent of the values below it")
        x_up: Literal["search", "paper"] = Field(
            "search", description="paper: the percentile; search: the percentile or the maximum, by the smaller error"
        )
        fallback: bool = Field(True, description="use a uniform quantizer if its error on the sample is smaller")

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        """Take post-GELU sites with one scale."""
        if site.kind is not SiteKind.POST_GELU or spec.granularity is not Granularity.PER_TENSOR:
            return None
        uniform, uniform_error = _uniform(spec, stats)
        if spec.bits < 3:
            return QuantizerChoice(uniform, "OPT-m needs 3 bits or more: uniform")
        small, large = (1 << (spec.bits - 2)) - 1, (1 << (spec.bits - 1)) - 1
        x_low, x_up = -float(stats.image_min_mean), float(stats.quantile(self.config.percentile / 100.0))
        if x_low <= 0 or x_up <= 0:
            return QuantizerChoice(uniform, "OPT-m found no negative or no positive values: uniform")
        start = x_low / small
        widest = [x_up] if self.config.x_up == "paper" else [x_up, float(stats.max)]
        ratios = dict.fromkeys(round(math.log2(x / large / start)) for x in widest)
        results = [self._search(start, m1, spec, stats) for m1 in ratios if m1 > 0]
        if not results:
            return QuantizerChoice(uniform, f"OPT-m found m1 = {max(ratios)}, which leaves no m0: uniform")
        error, s0, m0, m1 = min(results)
        if self.config.fallback and error > uniform_error:
            return QuantizerChoice(uniform, f"OPT-m with m0 = {m0}, m1 = {m1} has a larger error than uniform: uniform")
        return QuantizerChoice(
            regions(s0, m0, m1, spec.bits, self.config.split), f"s0 = {s0:.4g}, m0 = {m0}, m1 = {m1}"
        )

    def _search(self, s0: float, m1: int, spec: QuantSpec, stats: SiteStats) -> tuple[float, float, int, int]:
        """Search m0 (Eq. 8) at Eq. 7's s0, then s0; returns the least error, s0, m0 and m1."""
        from qplug import grid_search

        def quantizer(s: float, m: int) -> RegionQuantizer:
            return regions(s, m, m1, spec.bits, self.config.split)

        m0 = int(grid_search(stats, lambda m: quantizer(s0, int(m)), range(m1))[0])
        grid = self._grid(s0, spec, stats)
        index, error = grid_search(stats, lambda i: quantizer(grid[int(i)], m0), range(len(grid)))
        return float(error), grid[int(index)], m0, m1

    def _grid(self, s0: float, spec: QuantSpec, stats: SiteStats) -> list[float]:
        n = self.config.candidates
        if self.config.s0_grid == "paper":
            top = 1.2 * float(stats.max.abs()) / (1 << (spec.bits - 1))
            return [top * (i + 1) / n for i in range(n)]
        return [s0, *(s0 * (0.5 + 1.0 * i / (n - 1)) for i in range(n))]


def _uniform(spec: QuantSpec, stats: SiteStats) -> tuple[qplug.Quantizer, float]:
    """The uniform quantizer chosen by the same metric, and its error."""
    from qplug import line_search, make_quantizer

    base = make_quantizer(spec, stats.min, stats.max)
    factor, error = line_search(stats, base.scaled)
    return base.scaled(factor), float(error)
