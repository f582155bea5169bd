"""SQ-b: SmoothQuant with a bias term."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import NormGroup, Smoothing, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import SiteStats


class SqB(Technique):
    """Shift and scale every channel of a norm's output for a symmetric quantizer.

    For channel j of the norm's output Y and the linears W that read it: mu_j = mean(Y_j) and
    eps_j = (max|Y_j| / max|W_j|)^0.5. The core then sets gamma' = gamma/eps, beta' = (beta − mu)/eps, W' = W·diag(eps),
    b' = b + W·mu (Eq. 4 and 5). Eq. 1 prints the maxima without bars; a norm's output has both signs, so they are
    maxima of absolute values, as in SmoothQuant. The paper does not state whether Y is taken before or after the
    subtraction of mu. The default is after it, since this range is quantized [ours]. Linears that read the same norm
    share one eps.
    """

    paper = "Tai and Wu 2024, MPTQ-ViT, section 3.1, Eq. 1, 4, 5"

    class Config(qplug.Config):
        """The norms, the range and the exponent."""

        use: Literal["mptq_vit.sq_b"] = Field("mptq_vit.sq_b", description="name of the technique")
        match: tuple[str, ...] = Field(("*",), description="patterns of the norms or linears to smooth", min_length=1)
        range: Literal["after_shift", "before_shift"] = Field(
            "after_shift", description="whether max|Y| is taken after or before subtracting the mean"
        )
        strength: float = Field(0.5, ge=0.0, le=1.0, description="exponent of max|Y|/max|W|, without unit")

    @hookimpl
    def qplug_smooth(self, group: NormGroup, stats: SiteStats) -> Smoothing | None:
        """Smooth the norm if it or one of its linears matches."""
        import torch

        if not group.matches(self.config.match):
            return None
        mean = stats.channel_mean
        middle = mean if self.config.range == "after_shift" else torch.zeros_like(mean)
        largest = torch.maximum(stats.channel_max - middle, middle - stats.channel_min)
        strength = self.config.strength
        return Smoothing(mean, group.balance(largest, strength, strength), f"eps^{strength:g}")
