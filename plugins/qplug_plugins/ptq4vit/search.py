"""The alternating search of scales for all sites without a twin quantizer."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import Granularity, InputError, QuantizerChoice, QuantSpec, Site, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import SiteStats


class Fused(qplug.Config):
    """A fused weight: one matrix that consists of several."""

    match: str = Field(min_length=1, description="pattern (* ? [..]) over module paths")
    groups: int = Field(ge=2, le=64, description="groups of output channels, of equal size, with one scale each")


class Search(Technique):
    """Alternating search of the scales of weight and activation by the Hessian-guided metric (section 3.3).

    Candidates are alpha + i·(beta − alpha)/n, i = 0 … n − 1, times max|x|/(2^(b−1) − 0.5). The scale minimizes
    Σ (dL/dO)²·(Ô − O)², with the other operand quantized (Eq. 7–8). L is the recipe's ``calibration.loss``: ``kl_zero``
    is the loss of the released code, and ``none`` gives the unweighted squared error. ``objective: cosine`` uses the
    cosine distance of the output instead.

    A per-tensor weight whose module matches ``fused`` gets one scale per group. timm's fused q, k and v are such a
    weight; the released code also matches them by name. Per-channel and per-head scales are searched separately.

    Deviations: the released code starts from max-based scales, so its first search of the weight uses a coarse input;
    here the first search of the input uses the float weight [ours]. Rounds end when no scale changes. Errors are those
    of sampled outputs, on the float model's activations.
    """

    paper = "Yuan et al. 2022, PTQ4ViT, section 3.3, Eq. 7–8, Algorithm 1"
    gradients = True

    class Config(qplug.Config):
        """The search."""

        use: Literal["ptq4vit.search"] = Field("ptq4vit.search", description="name of the technique")
        objective: Literal["hessian", "cosine"] = Field("hessian", description="error that a candidate minimizes")
        alpha: float = Field(0.01, gt=0.0, le=1.0, description="smallest factor of max/(qmax − 0.5), without unit")
        beta: float = Field(1.2, ge=1.0, le=4.0, description="upper end of the factors, excluded, without unit")
        candidates: int = Field(100, ge=2, le=1000, description="candidates, evenly spaced")
        rounds: int = Field(3, ge=0, le=100, description="rounds of the alternating search")
        fused: tuple[Fused, ...] = Field(
            (Fused(match="*qkv", groups=3),), description="weights that consist of several, with one scale each"
        )

    @hookimpl
    def qplug_alternation_rounds(self, operands: Sequence[Site]) -> int:
        """The configured number of rounds."""
        return int(self.config.rounds)

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice:
        """Take every site."""
        from qplug import UniformQuantizer, evenly, grid_search

        groups, granularity = self._groups(site, spec), spec.granularity
        low, high = stats.range(granularity)
        if groups is not None:
            granularity = Granularity.PER_CHANNEL
            low, high = stats.channel_min.view(groups, -1).amin(1), stats.channel_max.view(groups, -1).amax(1)
            size = site.shape[0] // groups
            low, high = (stats.as_channels(bound.repeat_interleave(size)) for bound in (low, high))
        widest = UniformQuantizer.from_range(low, high, spec)
        base = widest.scaled(widest.high / (widest.high + 0.5))
        factor, _ = grid_search(
            stats,
            base.scaled,
            evenly(self.config.alpha, self.config.beta, self.config.candidates),
            granularity=granularity,
            objective="cosine" if self.config.objective == "cosine" else "output",
            groups=groups,
        )
        of = f"{float(factor.mean()):.2f} of max/(qmax − 0.5)" + (f", {groups} groups" if groups else "")
        return QuantizerChoice(base.scaled(factor), f"{self.config.objective}, {of}")

    def _groups(self, site: Site, spec: QuantSpec) -> int | None:
        fused = next((f for f in self.config.fused if fnmatchcase(site.module, f.match)), None)
        if fused is None or not site.kind.is_weight or spec.granularity is not Granularity.PER_TENSOR:
            return None
        if site.shape[0] % fused.groups:
            raise InputError(
                f"{site.shape[0]} output channels cannot be divided into {fused.groups} equal groups",
                where=site.name,
                fix=f"change 'fused' of ptq4vit.search, whose pattern {fused.match!r} matches {site.module}",
            )
        return int(fused.groups)
