"""O-2SF: outlier-aware scaling factors for LayerNorm outputs, one per group of channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import Granularity, QuantizerChoice, QuantSpec, Site, SiteKind, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from qplug import Quantizer, SiteStats


class O2sf(Technique):
    """K groups of channels by K-means, with one scale each.

    TSPTQ-ViT uses K = 2; MPTQ-ViT's baseline, K = 4. TSPTQ-ViT's text is not available, so these are [ours]: K-means is
    applied to log2 of the channels' largest magnitudes. The initial range of each group is its min-max range. In each
    of ``rounds`` rounds, the Hessian-guided metric searches one scale after the other, with the others fixed, in the
    order of decreasing magnitudes.
    """

    paper = "Tai, Lin and Wu 2023, TSPTQ-ViT, as described in MPTQ-ViT, sections 2.3 and 4"
    gradients = True

    class Config(qplug.Config):
        """The groups."""

        use: Literal["tsptq_vit.o_2sf"] = Field("tsptq_vit.o_2sf", description="name of the technique")
        groups: int = Field(4, ge=1, le=64, description="K, number of groups of channels")
        rounds: int = Field(1, ge=1, le=10, description="rounds of the search over all groups")

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        """Take post-LayerNorm sites with one scale and the linear's input channels as the last axis."""
        import torch

        from qplug import line_search, make_quantizer

        channels_last = site.source is not None and site.channel_axis == -1
        if site.kind is not SiteKind.POST_LAYERNORM or not channels_last or spec.granularity is Granularity.PER_CHANNEL:
            return None
        group = self._groups(stats)
        low, high = torch.empty_like(stats.channel_min), torch.empty_like(stats.channel_max)
        for k in range(int(group.max()) + 1):
            low[group == k], high[group == k] = stats.channel_min[group == k].min(), stats.channel_max[group == k].max()
        quantizer = make_quantizer(spec, low, high)
        for k in [*range(int(group.max()) + 1)] * self.config.rounds:
            members = group == k
            start = quantizer

            def scaled(factor: Tensor, start: Quantizer = start, members: Tensor = members) -> Quantizer:
                return start.scaled(torch.where(members, factor, torch.ones_like(stats.channel_max)))

            factor, _ = line_search(stats, scaled, candidates=16, refine=6)
            quantizer = scaled(factor)
        return QuantizerChoice(quantizer, f"{int(group.max()) + 1} groups of channels")

    def _groups(self, stats: SiteStats) -> Tensor:
        """(C,) int64: the group of each channel; group 0 has the largest magnitudes."""
        import torch
        from sklearn.cluster import KMeans

        magnitude = stats.channel_absmax.clamp_min(1e-12).log2().double().cpu().numpy().reshape(-1, 1)
        wanted = min(self.config.groups, len(set(magnitude.ravel().tolist())))
        clusters = KMeans(wanted, n_init=4, random_state=0).fit(magnitude)
        order = clusters.cluster_centers_.ravel().argsort()[::-1].argsort()
        return torch.from_numpy(order[clusters.labels_].copy()).to(stats.sample.device)
