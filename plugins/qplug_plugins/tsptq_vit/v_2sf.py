"""V-2SF: value-aware two-scaled scaling factors for post-Softmax and post-GELU activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import Granularity, QuantizerChoice, QuantSpec, Site, SiteKind, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from qplug import RegionQuantizer, SiteStats

KINDS = {"post_softmax": SiteKind.POST_SOFTMAX, "post_gelu": SiteKind.POST_GELU}


def two_scaled(step: float, shift: int, bits: int, signed: bool) -> RegionQuantizer:
    """Small magnitudes at ``step``, large ones at ``step``·2^``shift``. One bit selects the scale.

    Small values need another bit for their sign.
    MPTQ-ViT's section 4.3 describes the format at 4 bits. Negative and small positive post-GELU values have seven bins
    (−3 … 3), and large ones seven (1 … 7) that are eight times as wide. Post-Softmax values have no sign, so small ones
    have b − 1 bits, too.
    """
    from qplug import Region, RegionQuantizer

    small = (1 << (bits - (2 if signed else 1))) - 1
    large = (1 << (bits - 1)) - 1
    first = Region(-(1 << 30), 0, -small if signed else 0, small)
    return RegionQuantizer(step, (first, Region(small + 1, shift, 0, large)), bits)


class V2sf(Technique):
    """Two scaling factors for small and large magnitudes, whose ratio is a power of two.

    TSPTQ-ViT's text is not available; MPTQ-ViT prints the ratio at 4 bits, 8. ``ratio: paper`` is 2^(b−1) for every bit
    width. This is 8 at 4 bits, but too large for post-GELU values at 8 bits. The default, ``search``, uses the
    Hessian-guided metric to choose among all powers of two without a gap between small and large codes [ours]. The same
    metric chooses the small factor.
    """

    paper = "Tai, Lin and Wu 2023, TSPTQ-ViT, as described in MPTQ-ViT, sections 2.3 and 4.3"
    gradients = True

    class Config(qplug.Config):
        """The kinds and the ratio."""

        use: Literal["tsptq_vit.v_2sf"] = Field("tsptq_vit.v_2sf", description="name of the technique")
        kinds: tuple[Literal["post_softmax", "post_gelu"], ...] = Field(
            ("post_softmax", "post_gelu"), description="kinds of activations to take", min_length=1
        )
        ratio: Literal["search", "paper"] = Field(
            "search", description="ratio of the large to the small factor: 2^(b−1), or the power of two of least error"
        )

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        """Take sites of the configured kinds that have one scale and positive values, at 3 bits or more."""
        from qplug import line_search

        if spec.granularity is not Granularity.PER_TENSOR or spec.bits < 3:
            return None
        if site.kind not in [KINDS[kind] for kind in self.config.kinds] or not stats.max > 0:
            return None
        signed = bool(stats.min < 0)
        shifts = [spec.bits - 1] if self.config.ratio == "paper" else list(range(1, spec.bits + (0 if signed else 1)))
        best: tuple[float, float, int] | None = None
        for shift in shifts:
            widest = float(stats.max) / (((1 << (spec.bits - 1)) - 1) << shift)

            def made(factor: Tensor, shift: int = shift, widest: float = widest) -> RegionQuantizer:
                return two_scaled(widest * float(factor), shift, spec.bits, signed)

            factor, error = line_search(stats, made, low=0.05, candidates=16, refine=6)
            if best is None or float(error) < best[0]:
                best = (float(error), widest * float(factor), shift)
        assert best is not None
        _, step, shift = best
        return QuantizerChoice(two_scaled(step, shift, spec.bits, signed), f"step = {step:.4g}, ratio = {1 << shift}")
