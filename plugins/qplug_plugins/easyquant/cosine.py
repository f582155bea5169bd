"""EasyQuant: scales that maximize the cosine similarity of quantized and float output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import QuantizerChoice, QuantSpec, Site, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import Quantizer, SiteStats


class Cosine(Technique):
    """Alternating search of the scales of weights and activations; each maximizes cos(Ô, O) among n candidates (Eq. 4).

    The paper's scale S is a factor: x̂ = round(x·S)/S (Eq. 1). Its initial value follows from the largest magnitude.
    Candidates are S·(alpha + i·(beta − alpha)/n), i = 0 … n − 1. These are ranges from twice to half the largest
    magnitude, with finer steps for narrow ones. Per-channel scales of weights use the output of their channel.

    Deviations: the paper averages the cosine over images; here it is computed over all sampled outputs together [ours].
    Algorithm 1 iterates over the whole network in each round, on activations of the partly quantized network. Here each
    operation alternates separately, on the float model's activations [ours]. The first search of the weight uses an
    input scale searched with the float weight instead of a max-based one [ours]. Rounds end when no scale changes.
    """

    paper = "Wu et al. 2020, EasyQuant, section 3.2, Eq. 1–4, Algorithm 1"

    class Config(qplug.Config):
        """The search."""

        use: Literal["easyquant.cosine"] = Field("easyquant.cosine", description="name of the technique")
        alpha: float = Field(0.5, gt=0.0, le=1.0, description="smallest factor of the max-based scale, without unit")
        beta: float = Field(2.0, ge=1.0, le=100.0, description="upper end of the factors, excluded, without unit")
        candidates: int = Field(100, ge=2, le=1000, description="candidates, evenly spaced")
        rounds: int = Field(1, ge=0, le=100, description="rounds of the alternating search")

    @hookimpl
    def qplug_alternation_rounds(self, operands: Sequence[Site]) -> int:
        """The configured number of rounds."""
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
