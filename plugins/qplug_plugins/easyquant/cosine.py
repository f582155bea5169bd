"""EasyQuant: the scales whose quantized output points where the float output does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import QuantizerChoice, QuantSpec, Site, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import Quantizer, SiteStats


class Cosine(Technique):
    """Scales of weights and activations in turn, each the one of n that maximizes cos(Ô, O) (Eq. 4).

    The paper's scale S multiplies: x̂ = round(x·S)/S (Eq. 1). It starts from the largest magnitude, and candidates are
    S·(alpha + i·(beta − alpha)/n), i = 0 … n − 1, so ranges from twice to half the largest magnitude are tried, narrow
    ones in finer steps. Weights by channel choose each by its own channel's output.

    Deviations: the paper averages the cosine over images, here it is that of all sampled outputs together [ours].
    Algorithm 1 goes through the whole network in each round, on activations of the network quantized so far; here an
    operation alternates alone, on the float model's activations [ours]. The first weight is searched beside an input
    that was searched beside the float weight, not beside a max-based one [ours]. Rounds end where nothing changes.
    """

    paper = "Wu et al. 2020, EasyQuant, section 3.2, Eq. 1–4, Algorithm 1"

    class Config(qplug.Config):
        """The search."""

        use: Literal["easyquant.cosine"] = Field("easyquant.cosine", description="which technique this step is")
        alpha: float = Field(0.5, gt=0.0, le=1.0, description="smallest factor of the max-based scale, without unit")
        beta: float = Field(2.0, ge=1.0, le=100.0, description="where factors end, itself not tried, without unit")
        candidates: int = Field(100, ge=2, le=1000, description="candidates, evenly spaced")
        rounds: int = Field(1, ge=0, le=100, description="times that weight and activation are searched in turn")

    @hookimpl
    def qplug_alternation_rounds(self, operands: Sequence[Site]) -> int:
        """As often as configured."""
        return int(self.config.rounds)

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice:
        """Take every site."""
        from qplug import evenly, grid_search, make_quantizer

        base = make_quantizer(spec, *stats.range(spec.granularity))

        def narrowed(factor: float) -> Quantizer:
            return base.scaled(1.0 / factor)

        factors = evenly(self.config.alpha, self.config.beta, self.config.candidates)
        factor, _ = grid_search(stats, narrowed, factors, granularity=spec.granularity, objective="cosine")
        return QuantizerChoice(base.scaled(1.0 / factor), f"cosine, {float((1.0 / factor).mean()):.2f} of min-max")
