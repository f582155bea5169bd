"""SmoothQuant: channel scales that move the range of activations to weights."""

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
    the core then sets gamma' = gamma/eps, beta' = beta/eps, W' = W·diag(eps). All linears that read a norm share one
    eps. MPTQ-ViT's Eq. 1 uses alpha = 0.5. MPTQ-ViT's SQ-b is SmoothQuant after the subtraction of the mean.
    """

    paper = "Xiao et al. 2023, SmoothQuant, section 4, Eq. 3 and 4; MPTQ-ViT, section 2.2, Eq. 1"

    class Config(qplug.Config):
        """The norms and the exponent."""

        use: Literal["smoothing.smooth_quant"] = Field("smoothing.smooth_quant", description="name of the technique")
        match: tuple[str, ...] = Field(("*",), description="patterns of the norms or linears to smooth", min_length=1)
        alpha: float = Field(0.5, ge=0.0, le=1.0, description="exponent of max|Y| in the scale, without unit")

    @hookimpl
    def qplug_smooth(self, group: NormGroup, stats: SiteStats) -> Smoothing | None:
        """Smooth the norm if it or one of its linears matches."""
        import torch

        if not group.matches(self.config.match):
            return None
        alpha = self.config.alpha
        scale = group.balance(stats.channel_absmax, alpha, 1.0 - alpha)
        return Smoothing(torch.zeros_like(scale), scale, f"alpha = {alpha:g}")
