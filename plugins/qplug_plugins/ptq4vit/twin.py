"""Twin uniform quantizers: two ranges with one step each, for the outputs of Softmax and GELU."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug
from qplug import Granularity, QuantizerChoice, QuantSpec, Site, SiteKind, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import Quantizer, RegionQuantizer, SiteStats

GELU_LEAST = 0.16997124254703522
"""−min GELU, a constant of the released code."""
WIDEST = 1.2
"""beta of the search: the widest positive side after GELU, relative to the largest value."""


def after_softmax(split: float, bits: int, boundary: str = "nearest") -> RegionQuantizer:
    """Fine values 0 … n times split/n and coarse values 0 … n times 1/n, with n = 2^(b−1) − 1 and ``split`` = 2^−i.

    Each range has b − 1 bits, and one bit selects the range. The ratio of the steps is a power of two, so integers of
    the finer step represent both ranges exactly. With ``boundary="paper"``, the coarse range begins at the split, up to
    half a fine step; values just above it may be rounded to 0. With ``"nearest"``, it begins halfway to the next coarse
    value.
    """
    from qplug import Region, RegionQuantizer

    top, shift = (1 << (bits - 1)) - 1, round(-math.log2(split))
    start, low = top + 1, 0
    if boundary == "nearest":
        low = min((top >> shift) + 1, top)
        start = max(start, (top + (low << shift)) // 2 + 1)
    return RegionQuantizer(split / top, (Region(0, 0, 0, top), Region(start, shift, low, top)), bits)


def after_gelu(shift: int, bits: int) -> RegionQuantizer:
    """Negative values with the step 0.17/2^(b−1), which clips none; others with a step 2^``shift`` times as large."""
    from qplug import Region, RegionQuantizer

    half = 1 << (bits - 1)
    return RegionQuantizer(GELU_LEAST / half, (Region(-(1 << 30), 0, -half, 0), Region(0, shift, 0, half - 1)), bits)


class Twin(Technique):
    """Twin uniform quantization of post-Softmax and post-GELU activations (section 3.2).

    After Softmax, the split of the two ranges is one of 2^0 … 2^−19. The steps are those of the released code, which
    divides by 2^(b−1) − 1, so that 1 is a value of the grid; the paper prints 2^(b−1). In the paper, values between the
    split and half a coarse step are rounded to 0, and the code adds the split to every coarse value.
    ``boundary: nearest`` rounds to the nearest value of both ranges [ours]; ``paper`` follows the print.

    After GELU, the negative step is fixed, and the positive step is searched. ``ratio: power_of_two`` is the paper's
    constraint: any 2^m, m ≥ 0, up to the first whose range contains 1.2 times the largest value [ours: no range of m is
    given]. ``ratio: free`` is from the released code: ``candidates`` steps, evenly spaced from 0.01 to 1.2 times
    max/(2^(b−1) − 0.5).

    Candidates are compared by the Hessian-guided output error; in an alternation, the other operand is quantized. The
    released code compares splits with the other operand in float, again in every round, with the same result.
    """

    paper = "Yuan et al. 2022, PTQ4ViT, section 3.2, twin uniform quantization"
    gradients = True

    class Config(qplug.Config):
        """The kinds and the ratio."""

        use: Literal["ptq4vit.twin"] = Field("ptq4vit.twin", description="name of the technique")
        kinds: tuple[Literal["post_softmax", "post_gelu"], ...] = Field(
            ("post_softmax", "post_gelu"), description="kinds of activations to take", min_length=1
        )
        splits: int = Field(20, ge=1, le=20, description="candidates 2^−i of the split after Softmax")
        boundary: Literal["nearest", "paper"] = Field(
            "nearest",
            description="start of the coarse range after Softmax: halfway to its next value, or as printed",
        )
        ratio: Literal["power_of_two", "free"] = Field(
            "power_of_two", description="ratio of the positive to the negative step after GELU"
        )
        candidates: int = Field(100, ge=2, le=1000, description="candidates of a free positive step")

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        """Take sites of the configured kinds that have one scale."""
        if spec.granularity is not Granularity.PER_TENSOR or site.kind.value not in self.config.kinds:
            return None
        if site.kind is SiteKind.POST_SOFTMAX:
            return self._softmax(spec, stats)
        return self._gelu(spec, stats)

    def _softmax(self, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice:
        from qplug import grid_search

        def twin(split: float) -> Quantizer:
            return after_softmax(split, spec.bits, self.config.boundary)

        split, _ = grid_search(stats, twin, [2.0**-i for i in range(self.config.splits)])
        return QuantizerChoice(twin(float(split)), f"split 2^{round(math.log2(split))}")

    def _gelu(self, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice:
        from qplug_plugins.ptq4vit.quantizer import TwinQuantizer

        from qplug import evenly, grid_search

        half = 1 << (spec.bits - 1)
        negative, widest = GELU_LEAST / half, max(float(stats.max), GELU_LEAST) / (half - 0.5)

        def free(factor: float) -> Quantizer:
            return TwinQuantizer(negative, widest * factor, spec.bits)

        if self.config.ratio == "free":
            factor, _ = grid_search(stats, free, evenly(0.01, WIDEST, self.config.candidates))
            return QuantizerChoice(free(float(factor)), f"positive side {float(factor):.2f} of the maximum")
        shifts = range(max(1, 1 + math.ceil(math.log2(WIDEST * widest / negative))))
        shift, _ = grid_search(stats, lambda shift: after_gelu(int(shift), spec.bits), shifts)
        return QuantizerChoice(after_gelu(int(shift), spec.bits), f"ratio 2^{int(shift)}")
