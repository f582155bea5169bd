"""The range search of RepQ-ViT's code: a few percentiles, and the one that loses least of the tensor itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import Field

import qplug
from qplug import Granularity, QuantizerChoice, QuantSpec, Site, Technique, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from qplug import Quantizer, SiteStats

Q = TypeVar("Q", bound="Quantizer")
Percentiles = Annotated[
    tuple[Annotated[float, Field(gt=50.0, le=100.0)], ...],
    Field(min_length=1, description="candidates: percent of the sampled values below the upper end of the range"),
]
CANDIDATES = (99.9, 99.99, 99.999)
"""Those of the released code."""


def search(
    stats: SiteStats,
    granularity: Granularity,
    percentiles: Sequence[float],
    make: Callable[[Tensor, Tensor], Q],
) -> Q:
    """The quantizer of the percentiles that lose least, Σ(x̂ − x)² of the sample, for each scale on its own.

    Args:
        stats: the site; its sample is capped, so a far percentile is about the sample's extreme.
        granularity: which scales choose on their own.
        percentiles: p, percent; the range is from the (100 − p)-th to the p-th percentile.
        make: (low, high) in the shape of the scales → the quantizer of that range.
    """
    import torch

    best = least = torch.full((), torch.inf, device=stats.sample.device)
    for p in percentiles:
        ends = torch.stack([stats.quantile(1.0 - p / 100.0, granularity), stats.quantile(p / 100.0, granularity)])
        error = stats.value_error(make(*ends).infer(stats.sample), granularity)
        best, least = torch.where(error < least, ends, best), torch.minimum(error, least)
    return make(*best)


class Percentile(Technique):
    """Every tensor that is left, weights too, in the range between two percentiles that loses least.

    Of the ranges between the (100 − p)-th and the p-th percentile, p = 99.9, 99.99 and 99.999, each scale takes the one
    with the least Σ(x̂ − x)². Deviations from the released code: percentiles are those of the capped sample instead of
    all calibration values [ours]; ranges are widened to hold 0, so that 0 maps to 0 [ours]; statistics are those of the
    float model, while the code calibrates each layer behind the quantized ones before it [ours].
    """

    paper = "Li et al. 2023, RepQ-ViT (arXiv:2212.08254), released code"

    class Config(qplug.Config):
        """The candidates."""

        use: Literal["repq_vit.percentile"] = Field("repq_vit.percentile", description="which technique this step is")
        percentiles: Percentiles = CANDIDATES

    @hookimpl
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice:
        """Take every site."""
        from qplug import make_quantizer

        quantizer = search(
            stats,
            spec.granularity,
            self.config.percentiles,
            lambda low, high: make_quantizer(spec, low, high),
        )
        return QuantizerChoice(quantizer, "percentiles, least squares")
