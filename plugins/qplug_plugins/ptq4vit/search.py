"""The alternating search of scales for everything that is not twin."""

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
    """A fused weight: one matrix that stands for several."""

    match: str = Field(min_length=1, description="pattern (* ? [..]) over module paths")
    groups: int = Field(ge=2, le=64, description="groups of output channels, all of one size, each with its own scale")


class Search(Technique):
    """Scales from evenly spaced candidates by the Hessian-guided metric, weight and activation in turn (section 3.3).

    Candidates are alpha + i·(beta − alpha)/n, i = 0 … n − 1, of max|x|/(2^(b−1) − 0.5); each minimizes
    Σ (dL/dO)²·(Ô − O)² beside the other operand as it is quantized (Eq. 7–8). L is the recipe's ``calibration.loss``:
    ``kl_zero`` is that of the released code, ``none`` makes it the plain squared error. ``objective: cosine`` takes the
    cosine distance of the output instead.

    A weight with one scale whose module matches ``fused`` gets one scale for each group; timm's q, k and v, which the
    released code knows by name too, are such a weight. Scales by channel and by head are searched for each alone.

    Deviations: the released code starts from max-based scales, so that the first weight is searched beside a coarse
    input; here the first input is searched beside the float weight [ours]. Rounds end where nothing changes any more.
    Errors are those of sampled outputs, on the float model's activations.
    """

    paper = "Yuan et al. 2022, PTQ4ViT, section 3.3, Eq. 7–8, Algorithm 1"
    gradients = True

    class Config(qplug.Config):
        """The search."""

        use: Literal["ptq4vit.search"] = Field("ptq4vit.search", description="which technique this step is")
        objective: Literal["hessian", "cosine"] = Field("hessian", description="what a candidate must lose least of")
        alpha: float = Field(0.01, gt=0.0, le=1.0, description="smallest factor of max/(qmax − 0.5), without unit")
        beta: float = Field(1.2, ge=1.0, le=4.0, description="where factors end, itself not tried, without unit")
        candidates: int = Field(100, ge=2, le=1000, description="candidates, evenly spaced")
        rounds: int = Field(3, ge=0, le=100, description="times that weight and activation are searched in turn")
        fused: tuple[Fused, ...] = Field(
            (Fused(match="*qkv", groups=3),), description="weights that stand for several, which get a scale each"
        )

    @hookimpl
    def qplug_alternation_rounds(self, operands: Sequence[Site]) -> int:
        """As often as configured."""
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
                f"{site.shape[0]} output channels do not part into {fused.groups} groups",
                where=site.name,
                fix=f"change 'fused' of ptq4vit.search, whose pattern {fused.match!r} matches {site.module}",
            )
        return int(fused.groups)
