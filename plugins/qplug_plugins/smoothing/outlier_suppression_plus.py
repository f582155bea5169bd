"""Outlier Suppression+: channels are centred by their extremes, and outliers are scaled to a searched threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

import qplug
from qplug import NormGroup, QuantSpec, Smoothing, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from qplug import SiteStats


class OutlierSuppressionPlus(Technique):
    """Shift every channel of a norm's output by the middle of its range, and scale channels that exceed a threshold.

    For channel j of the norm's output Y: mu_j = (max(Y_j) + min(Y_j))/2 and eps_j = max(1, max|Y_j − mu_j|/t), with one
    threshold t for the norm. The core folds both as for SQ-b. Candidates of t go from max|Y − mu| down to 1 in
    max(100, max|Y − mu|/0.5) equal steps, as in the authors' code. The first one of least Σ(Ô − O)² is used. O are the
    outputs of all linears that read the norm, for the sampled tokens; Ô are those with input and weights quantized to
    min-max ranges, at the recipe's bits and granularity. If max|Y − mu| is below 1, there is no search, and eps is 1.

    MPTQ-ViT prints both with X̄, the normalized input, and eps as max(X̄_j − mu_j)/t_j. Here X̄ is Y, since Eq. 4
    subtracts mu from Y. There is one threshold t for all channels, and eps is at least 1, as in Wei et al. With one t_j
    per channel, eps would be arbitrary, and a grid of so many dimensions cannot be searched. If the linears are q, k
    and v, the authors' code uses attention's output as O; here O are the outputs of the linears [ours].

    MPTQ-ViT's Table 5, this mu with SQ-b's eps, is ``scale: none`` followed by ``smoothing.smooth_quant``. Its Table 6,
    this eps with SQ-b's mu, is ``mptq_vit.sq_b`` with ``strength: 0``, followed by this technique with ``shift: none``.
    """

    paper = "Wei et al. 2023, Outlier Suppression+ (arXiv:2304.09145), and its released code; MPTQ-ViT, section 4.2"

    class Config(qplug.Config):
        """The norms, the shift and the scale."""

        use: Literal["smoothing.outlier_suppression_plus"] = Field(
            "smoothing.outlier_suppression_plus", description="name of the technique"
        )
        match: tuple[str, ...] = Field(("*",), description="patterns of the norms or linears to smooth", min_length=1)
        shift: Literal["middle", "none"] = Field("middle", description="value subtracted from every channel")
        scale: Literal["search", "none"] = Field("search", description="divisor of every channel")

        @model_validator(mode="after")
        def _does_something(self) -> OutlierSuppressionPlus.Config:
            if self.shift == self.scale == "none":
                raise ValueError("'shift' and 'scale' cannot both be none")
            return self

    @hookimpl
    def qplug_smooth(self, group: NormGroup, stats: SiteStats) -> Smoothing | None:
        """Smooth the norm if it or one of its linears matches."""
        import torch

        if not group.matches(self.config.match):
            return None
        ones = torch.ones_like(stats.channel_max)
        shift = torch.zeros_like(ones)
        if self.config.shift == "middle":
            shift = (stats.channel_max + stats.channel_min) / 2
        if self.config.scale == "none":
            return Smoothing(shift, ones, "middle of the range")
        centred = stats.smoothed(Smoothing(shift, ones))
        threshold, most = _search(group, centred), float(centred.channel_absmax.max())
        return Smoothing(shift, _scale(centred, threshold), f"t = {threshold:.3g} of {most:.3g}")


def _scale(centred: SiteStats, threshold: float) -> Tensor:
    """(C,) eps_j = max(1, max|Y_j − mu_j|/t)."""
    return (centred.channel_absmax / threshold).clamp_min(1.0)


def _search(group: NormGroup, centred: SiteStats) -> float:
    """The threshold of least error, the largest one in a tie."""
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
        quantized = [x @ _quantized(w, spec).T for w, spec in zip(weights, group.weight_specs, strict=True)]
        return sum(float((q - o).square().sum()) for q, o in zip(quantized, outputs, strict=True))

    return min(grid, key=error)


def _weight_stats(linear: str, weight: Tensor) -> SiteStats:
    from qplug import Site, SiteKind, SiteStats

    site = Site(f"{linear}.weight", SiteKind.LINEAR_WEIGHT, linear, "weight", tuple(weight.shape), channel_axis=0)
    return SiteStats.from_tensor(weight, site)


def _quantized(stats: SiteStats, spec: QuantSpec | None) -> Tensor:
    """The sample, quantized to its min-max range by the specification; unchanged for ``None``, a tensor in float."""
    from qplug import make_quantizer

    if spec is None:
        return stats.sample
    return make_quantizer(spec, *stats.range(spec.granularity)).infer(stats.sample)
