"""Scale re-parametrization: per-channel quantization of LayerNorm outputs at the cost of per-tensor quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from qplug_plugins.repq_vit.percentile import CANDIDATES, Percentiles, search

import qplug
from qplug import Granularity, NormGroup, QuantizerChoice, QuantSpec, Site, Smoothing, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from qplug import SiteStats, UniformQuantizer


class Reparameterize(Technique):
    """Fold the scales and zero points of a per-channel quantizer into the norm and the linears that read it.

    The percentile search of the released code gives a scale s_j and a zero point z_j for each channel of the norm's
    output Y. With s̃ = mean(s), z̃ = mean(z), r1 = s/s̃ and r2 = z − z̃, the core sets gamma' = gamma/r1,
    beta' = (beta + s·r2)/r1, W' = W·diag(r1), b' = b − W·(s·r2): a smoothing with shift −s·r2 and scale r1. Then
    Y'/s̃ + z̃ = Y/s + z, so one scale s̃ and one zero point z̃ give the same codes as the per-channel quantizers. The site
    gets this quantizer, or one of the same range at other bits. Weights are calibrated after it, as in the paper.

    The technique stores s̃ and z̃, and does not search on the statistics of Y'. That search would return the same values
    on the same sample, but separate linears for q, k and v have separate samples.
    A site that is smoothed again, or whose norm has other readers, is left to the next technique.

    Zero points need ``symmetric: false``, for all activations or by ``overrides: [{match: post_layernorm, …}]``. For a
    symmetric quantizer, only scales are folded, and the plan contains no zero point [ours]. z̃ is rounded and clamped to
    the range of codes, while the released code's may be a float; codes do not depend on this choice [ours]. Percentiles
    are those of the capped sample [ours]. A constant channel is shifted to 0 and not scaled [ours].
    """

    paper = "Li et al. 2023, RepQ-ViT (arXiv:2212.08254), section 3.2, and its released code"

    class Config(qplug.Config):
        """The norms and the candidates."""

        use: Literal["repq_vit.reparameterize"] = Field("repq_vit.reparameterize", description="name of the technique")
        match: tuple[str, ...] = Field(("*",), description="patterns of the norms or linears to take", min_length=1)
        percentiles: Percentiles = CANDIDATES

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._quantizers: dict[str, tuple[UniformQuantizer, Tensor]] = {}

    @hookimpl
    def qplug_smooth(self, group: NormGroup, stats: SiteStats) -> Smoothing | None:
        """Fold if the norm or one of its linears matches, and its output has a quantizer with one scale."""
        import torch

        from qplug import UniformQuantizer

        spec = group.input_spec
        if spec is None or spec.granularity is not Granularity.PER_TENSOR or not group.matches(self.config.match):
            return None
        channels = search(
            stats, Granularity.PER_CHANNEL, self.config.percentiles, lambda low, high: of_channels(low, high, spec)
        )
        varies = channels.scale > torch.finfo(torch.float32).tiny
        if not varies.any():
            return None
        scale, zero = channels.scale[varies].mean(), None
        if not spec.symmetric:
            zero = channels.zero_point[varies].mean().round().clamp(channels.low, channels.high)
        tensor = UniformQuantizer(scale, zero, spec.bits, channels.signed)
        smoothing = Smoothing(
            torch.where(varies, channels.scale * (tensor.zero_point - channels.zero_point), stats.channel_mean),
            torch.where(varies, channels.scale / tensor.scale, torch.ones_like(channels.scale)),
            f"s̃ = {float(scale):.3g}" + ("" if zero is None else f", z̃ = {int(zero)}"),
        )
        self._quantizers[group.norm] = tensor, _extremes(stats.smoothed(smoothing))
        return smoothing

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        """Take the sites of the folded norms."""
        import torch

        from qplug import UniformQuantizer

        if site.source not in self._quantizers:
            return None
        tensor, extremes = self._quantizers[site.source]
        if not torch.allclose(extremes, _extremes(stats)):
            return None
        coarser = tensor.high / ((1 << (spec.bits - tensor.signed)) - 1)
        zero = None if tensor.symmetric else torch.round(tensor.zero_point / coarser)
        return QuantizerChoice(
            UniformQuantizer(tensor.scale * coarser, zero, spec.bits, tensor.signed), "re-parametrized"
        )


def of_channels(low: Tensor, high: Tensor, spec: QuantSpec) -> UniformQuantizer:
    """As ``UniformQuantizer.from_range``, but an asymmetric range may exclude 0, and a symmetric one is signed."""
    import torch

    from qplug import UniformQuantizer

    if spec.symmetric:
        most = torch.maximum(low.abs(), high.abs())
        return UniformQuantizer.from_range(-most, most, spec)
    tiny = torch.finfo(torch.float32).tiny
    scale = ((high - low) / ((1 << spec.bits) - 1)).clamp_min(tiny)
    zero = torch.where(scale > tiny, torch.round(-low / scale), torch.zeros_like(scale))
    return UniformQuantizer(scale, zero, spec.bits, False)


def _extremes(stats: SiteStats) -> Tensor:
    import torch

    return torch.stack([stats.channel_min, stats.channel_max])
