"""O-2SF: outlier-aware scaling factors for what LayerNorm gives to linears, one a group of channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import Granularity, QuantizerChoice, QuantSpec, Site, SiteKind, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from qplug import Quantizer, SiteStats


class O2sf(Technique):
    """K groups of channels, found by K-means, each with a scale of its own.

    TSPTQ-ViT takes K = 2, MPTQ-ViT's baseline K = 4. TSPTQ-ViT's text is not at hand, so these are [ours]: K-means runs
    on log2 of the channels' largest magnitudes; each group starts at its own min-max range; then, largest group first,
    each scale is searched by the Hessian-guided metric while the others stand, ``rounds`` times over.
    """

    paper = "Tai, Lin and Wu 2023, TSPTQ-ViT, as described in MPTQ-ViT, sections 2.3 and 4"
    gradients = True

    class Config(qplug.Config):
        """The groups."""

        use: Literal["tsptq_vit.o_2sf"] = Field("tsptq_vit.o_2sf", description="which technique this step is")
        groups: int = Field(4, ge=1, le=64, description="K, groups of channels")
        rounds: int = Field(1, ge=1, le=10, description="times that every group's scale is searched")

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        """Take post-LayerNorm sites with one scale, whose channels are the linear's inputs, and split that scale."""
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
            here = group == k
            start = quantizer

            def scaled(factor: Tensor, start: Quantizer = start, here: Tensor = here) -> Quantizer:
                return start.scaled(torch.where(here, factor, torch.ones_like(stats.channel_max)))

            factor, _ = line_search(stats, scaled, candidates=16, refine=6)
            quantizer = scaled(factor)
        return QuantizerChoice(quantizer, f"{int(group.max()) + 1} groups of channels")

    def _groups(self, stats: SiteStats) -> Tensor:
        """(C,) int64: each channel's group, 0 the one of the largest magnitudes."""
        import torch
        from sklearn.cluster import KMeans

        magnitude = stats.channel_absmax.clamp_min(1e-12).log2().double().cpu().numpy().reshape(-1, 1)
        wanted = min(self.config.groups, len(set(magnitude.ravel().tolist())))
        found = KMeans(wanted, n_init=4, random_state=0).fit(magnitude)
        order = found.cluster_centers_.ravel().argsort()[::-1].argsort()
        return torch.from_numpy(order[found.labels_].copy()).to(stats.sample.device)
