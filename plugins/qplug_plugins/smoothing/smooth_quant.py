"""SmoothQuant: range moved from activations into weights, channel by channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import NormGroup, Smoothing, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import SiteStats


class SmoothQuant(Technique):
    """Scale every channel of a norm's output, without a shift.

    For channel j of the norm's output Y and the linears W that read it, eps_j = max|Y_j|^alpha / max|W_j|^(1 − alpha);
    the core then sets gamma' = gamma/eps, beta' = beta/eps, W' = W·diag(eps). Several linears that read one norm share
    one eps. Alpha 0.5 is what MPTQ-ViT's Eq. 1 takes. MPTQ-ViT's SQ-b is this after subtracting the mean.
    """

    paper = "Xiao et al. 2023, SmoothQuant, section 4, Eq. 3 and 4; MPTQ-ViT, section 2.2, Eq. 1"

    class Config(qplug.Config):
        """Which norms, and how far."""

        use: Literal["smoothing.smooth_quant"] = Field(
            "smoothing.smooth_quant", description="which technique this step is"
        )
        match: tuple[str, ...] = Field(("*",), description="patterns of the norms or linears to smooth", min_length=1)
        alpha: float = Field(0.5, ge=0.0, le=1.0, description="share of the range that weights take over, without unit")

    @hookimpl
    def qplug_smooth(self, group: NormGroup, stats: SiteStats) -> Smoothing | None:
        """Smooth the norm where it or one of its linears matches."""
        import torch

        if not group.matches(self.config.match):
            return None
        alpha = self.config.alpha
        scale = group.balance(stats.channel_absmax, alpha, 1.0 - alpha)
        return Smoothing(torch.zeros_like(scale), scale, f"alpha = {alpha:g}")
