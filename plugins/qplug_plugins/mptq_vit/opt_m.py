"""OPT-m: region-wise scales for post-GELU activations, with ratios that the data decide."""

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

    Region and sign indices take two bits of regions 1 (negative) and 2 (small positive), and one of region 3. Regions 2
    and 3 meet at 2^(m0 + b − 2), where region 2's codes end. The paper prints 2^(m0 + 3) at 6 bits, half of that, which
    contradicts the bits kept, [m0 + 3 : m0]; ``split="paper"`` keeps the print. Section 4.3's numbers are a test.
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

    x_low is the average over images of the minimum and x_up the 99.95 % percentile; m1 follows from both (Eq. 7), then
    m0 in {0 … m1 − 1} (Eq. 8) and last s0, both by the Hessian-guided metric. Deviations: the printed candidates of s0
    divide [0, 1.2·max|X|/2^(b−1)], which contains 0 and follows the positive maximum although s0 scales the negative
    region; here they lie around Eq. 7's s0, and ``s0_grid: paper`` keeps the print without its 0 [ours]. Where m1 ≤ 0
    leaves no candidate for m0, or b = 2 no magnitude bit, the site gets a uniform quantizer, and the plan says so. So
    it does where a uniform one loses less on the sample, ``fallback: false`` keeps the paper's quantizer there too
    [ours]. x_up is the percentile of the sampled tokens, not of all values; ViT-Ti's few massive activations lie far
    above it, so m1 is also tried with the maximum, and ``x_up: paper`` does not [ours]. As printed, region 3 also holds
    code 0, which values just above the bound take where m1 > m0 + b − 1; the search over m0 avoids it where it costs. A
    value whose rounding carries out of region 2 takes that region's last code [ours].
    """

    paper = "Tai and Wu 2024, MPTQ-ViT, section 3.2, Eq. 6–8"
    gradients = True

    class Config(qplug.Config):
        """The split and the search."""

        use: Literal["mptq_vit.opt_m"] = Field("mptq_vit.opt_m", description="which technique this step is")
        split: Literal["consistent", "paper"] = Field(
            "consistent", description="where region 3 begins: 2^(m0+b−2), or 2^(m0+b−3) as printed"
        )
        s0_grid: Literal["eq7", "paper"] = Field(
            "eq7", description="candidates of s0: around Eq. 7's value, or as printed"
        )
        candidates: int = Field(100, ge=2, le=1000, description="candidates of s0")
        percentile: float = Field(99.95, gt=50.0, le=100.0, description="x_up, percent of the values below it")
        x_up: Literal["search", "paper"] = Field(
            "search", description="the percentile alone, or the percentile and the maximum, whichever loses less"
        )
        fallback: bool = Field(True, description="take a uniform quantizer where that loses less on the sample")

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
        found = [self._search(start, m1, spec, stats) for m1 in ratios if m1 > 0]
        if not found:
            return QuantizerChoice(uniform, f"OPT-m found m1 = {max(ratios)}, which leaves no m0: uniform")
        error, s0, m0, m1 = min(found)
        if self.config.fallback and error > uniform_error:
            return QuantizerChoice(uniform, f"OPT-m with m0 = {m0}, m1 = {m1} loses more than uniform: uniform")
        return QuantizerChoice(
            regions(s0, m0, m1, spec.bits, self.config.split), f"s0 = {s0:.4g}, m0 = {m0}, m1 = {m1}"
        )

    def _search(self, s0: float, m1: int, spec: QuantSpec, stats: SiteStats) -> tuple[float, float, int, int]:
        """Eq. 8's m0 at Eq. 7's s0, then s0: the least error and where it was found."""
        from qplug import grid_search

        def made(s: float, m: int) -> RegionQuantizer:
            return regions(s, m, m1, spec.bits, self.config.split)

        m0 = int(grid_search(stats, lambda m: made(s0, int(m)), range(m1))[0])
        grid = self._grid(s0, spec, stats)
        place, error = grid_search(stats, lambda i: made(grid[int(i)], m0), range(len(grid)))
        return float(error), grid[int(place)], m0, m1

    def _grid(self, s0: float, spec: QuantSpec, stats: SiteStats) -> list[float]:
        n = self.config.candidates
        if self.config.s0_grid == "paper":
            top = 1.2 * float(stats.max.abs()) / (1 << (spec.bits - 1))
            return [top * (i + 1) / n for i in range(n)]
        return [s0, *(s0 * (0.5 + 1.0 * i / (n - 1)) for i in range(n))]


def _uniform(spec: QuantSpec, stats: SiteStats) -> tuple[qplug.Quantizer, float]:
    """The uniform quantizer that the same metric chooses, and its error."""
    from qplug import line_search, make_quantizer

    base = make_quantizer(spec, stats.min, stats.max)
    factor, error = line_search(stats, base.scaled)
    return base.scaled(factor), float(error)
