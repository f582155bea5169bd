"""Outlier Suppression+: channels centred by their extremes, and outliers scaled down to a searched threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

import qplug
from qplug import NormGroup, QuantSpec, Smoothing, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from qplug import SiteStats


class OutlierSuppressionPlus(Technique):
    """Shift every channel of a norm's output by the middle of its range, and scale down those that exceed a threshold.

    For channel j of the norm's output Y: mu_j = (max(Y_j) + min(Y_j))/2 and eps_j = max(1, max|Y_j − mu_j|/t), with one
    threshold t for the norm. The core folds both as it folds SQ-b's. t runs from max|Y − mu| down to 1 in
    max(100, max|Y − mu|/0.5) equal steps, as in the authors' code; the first of those with the least Σ(Ô − O)² stays,
    O being the outputs of all linears that read the norm for the sampled tokens, and Ô those with input and weights
    quantized to min-max ranges, at the bits and granularity that the recipe asks. Where max|Y − mu| is below 1 there is
    nothing to search, and eps is 1.

    MPTQ-ViT prints both with X̄, the normalized input, and eps as max(X̄_j − mu_j)/t_j. X̄ is read as Y, since Eq. 4
    subtracts mu from Y. t is read as one threshold for all channels and eps as bounded by 1 below, as in Wei et al.:
    with a t_j for each channel eps would be free, and no grid of that many dimensions can be searched. The authors'
    code takes attention's output for O where the linears are q, k and v; here it is theirs [ours].

    MPTQ-ViT's Table 5, this mu with SQ-b's eps, is ``scale: none`` followed by ``smoothing.smooth_quant``; its Table 6,
    this eps with SQ-b's mu, is ``mptq_vit.sq_b`` with ``strength: 0`` followed by this with ``shift: none``.
    """

    paper = "Wei et al. 2023, Outlier Suppression+ (arXiv:2304.09145), and its released code; MPTQ-ViT, section 4.2"

    class Config(qplug.Config):
        """Which norms, and which of the two halves."""

        use: Literal["smoothing.outlier_suppression_plus"] = Field(
            "smoothing.outlier_suppression_plus", description="which technique this step is"
        )
        match: tuple[str, ...] = Field(("*",), description="patterns of the norms or linears to smooth", min_length=1)
        shift: Literal["middle", "none"] = Field("middle", description="what is subtracted from every channel")
        scale: Literal["search", "none"] = Field("search", description="what every channel is divided by")

        @model_validator(mode="after")
        def _does_something(self) -> OutlierSuppressionPlus.Config:
            if self.shift == self.scale == "none":
                raise ValueError("changes nothing: 'shift' and 'scale' cannot both be none")
            return self

    @hookimpl
    def qplug_smooth(self, group: NormGroup, stats: SiteStats) -> Smoothing | None:
        """Smooth the norm where it or one of its linears matches."""
        import torch

        if not group.matches(self.config.match):
            return None
        one = torch.ones_like(stats.channel_max)
        shift = torch.zeros_like(one)
        if self.config.shift == "middle":
            shift = (stats.channel_max + stats.channel_min) / 2
        if self.config.scale == "none":
            return Smoothing(shift, one, "middle of the range")
        centred = stats.smoothed(Smoothing(shift, one))
        threshold, most = _search(group, centred), float(centred.channel_absmax.max())
        return Smoothing(shift, _scale(centred, threshold), f"t = {threshold:.3g} of {most:.3g}")


def _scale(centred: SiteStats, threshold: float) -> Tensor:
    """(C,) eps_j = max(1, max|Y_j − mu_j|/t)."""
    return (centred.channel_absmax / threshold).clamp_min(1.0)


def _search(group: NormGroup, centred: SiteStats) -> float:
    """The threshold that loses least, the largest of equals."""
    import torch

    most = float(centred.channel_absmax.max())
    if most <= 1.0:
        return 1.0
    steps = max(100, int(most / 0.5))
    grid = [most - (most - 1.0) * i / steps for i in range(steps + 1)]
    outputs = [centred.sample @ weight.T for weight in group.weights]

    def error(threshold: float) -> float:
        scale = _scale(centred, threshold)
        x = _quantized(centred.smoothed(Smoothing(torch.zeros_like(scale), scale)), group.input_spec)
        weights = [_weight_stats(linear, w * scale) for linear, w in zip(group.linears, group.weights, strict=True)]
        moved = [x @ _quantized(w, spec).T for w, spec in zip(weights, group.weight_specs, strict=True)]
        return sum(float((m - o).square().sum()) for m, o in zip(moved, outputs, strict=True))

    return min(grid, key=error)


def _weight_stats(linear: str, weight: Tensor) -> SiteStats:
    from qplug import Site, SiteKind, SiteStats

    site = Site(f"{linear}.weight", SiteKind.LINEAR_WEIGHT, linear, "weight", tuple(weight.shape), channel_axis=0)
    return SiteStats.from_tensor(weight, site)


def _quantized(stats: SiteStats, spec: QuantSpec | None) -> Tensor:
    """The sample in a min-max range at what the recipe asks, or as it is where that is float."""
    from qplug import make_quantizer

    if spec is None:
        return stats.sample
    return make_quantizer(spec, *stats.range(spec.granularity)).infer(stats.sample)
