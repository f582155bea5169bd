"""Power-of-two factor: LayerNorm inputs with one scale and a power-of-two factor per channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import Granularity, QuantizerChoice, QuantSpec, Site, SiteKind, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import SiteStats


class PowerOfTwoFactor(Technique):
    """s_c = s·2^(alpha_c − K), alpha_c in {0 … K}, for the inputs of LayerNorm, whose channels differ in range.

    s and the zero point belong to the min-max range of the whole tensor. A channel of smaller range gets finer steps,
    and the integers of all channels can be shifted to one scale. alpha_c has the least squared error on the channel's
    sampled values and on its minimum and maximum over all values, which a sample rarely contains. Each extreme is
    weighted as one value times the probability that the sample lacks it [ours]. Without the extremes, half of the
    channels of DeiT-Ti and ViT-Ti are clipped. As in the authors' code, s_c = s for alpha_c = K; the paper prints
    s·2^alpha_c with s divided by 2^K, which is the same. The technique takes LayerNorm inputs with one scale. They are
    sites only with ``quantize: {scope: {layernorm: true}}``; the paper quantizes them asymmetrically. The storage
    figure counts a scale of 32 bits per channel, although 2 bits and one scale suffice; activations are not stored.
    """

    paper = "Lin et al. 2022, FQ-ViT, section 3.2, Eq. 7–9"

    class Config(qplug.Config):
        """The range of the factors."""

        use: Literal["fq_vit.power_of_two_factor"] = Field(
            "fq_vit.power_of_two_factor", description="name of the technique"
        )
        halvings: int = Field(3, ge=0, le=8, description="K, the largest number of halvings of a channel's scale")

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        """Take LayerNorm inputs with one scale."""
        import torch

        from qplug import make_quantizer

        if site.kind is not SiteKind.LAYERNORM_INPUT or spec.granularity is not Granularity.PER_TENSOR:
            return None
        whole = make_quantizer(spec, stats.min, stats.max)
        ones = torch.ones_like(stats.channel_max)
        candidates = [whole.scaled(ones * 2.0**-k) for k in range(self.config.halvings + 1)]
        fraction = len(stats.sample) * site.shape[-1] / (len(stats.image_min) * site.numel)
        ends = torch.stack([stats.channel_min, stats.channel_max])
        errors = torch.stack(
            [
                stats.value_error(candidate.infer(stats.sample), Granularity.PER_CHANNEL)
                + fraction * (1.0 - fraction) * (candidate.infer(ends) - ends).square().sum(0)
                for candidate in candidates
            ]
        )
        halved = errors.argmin(0)
        counts = ", ".join(f"{int((halved == k).sum())} × 2^−{k}" for k in range(self.config.halvings + 1))
        return QuantizerChoice(whole.scaled(torch.exp2(-halved.to(ones.dtype))), f"channels by factor: {counts}")
