"""The range search of RepQ-ViT's code: the percentile of least squared error of the tensor."""

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
"""The percentiles of the released code."""


def search(
    stats: SiteStats,
    granularity: Granularity,
    percentiles: Sequence[float],
    make: Callable[[Tensor, Tensor], Q],
) -> Q:
    """The quantizer of the percentiles of least Σ(x̂ − x)² on the sample, chosen separately for each scale.

    Args:
        stats: the site's statistics; the sample is capped, so the highest percentiles are close to its extremes.
        granularity: the granularity of the scales.
        percentiles: p, percent; the range is from the (100 − p)-th to the p-th percentile.
        make: (low, high) in the shape of the scales → the quantizer of this range.
    """
    import torch

    best = least = torch.full((), torch.inf, device=stats.sample.device)
    for p in percentiles:
        ends = torch.stack([stats.quantile(1.0 - p / 100.0, granularity), stats.quantile(p / 100.0, granularity)])
        error = stats.value_error(make(*ends).infer(stats.sample), granularity)
        best, least = torch.where(error < least, ends, best), torch.minimum(error, least)
    return make(*best)


class Percentile(Technique):
    """The range between two percentiles of least squared error, for all remaining tensors, weights included.

    Of the ranges between the (100 − p)-th and the p-th percentile, p = 99.9, 99.99 and 99.999, each scale uses the one
    of least Σ(x̂ − x)². Deviations from the released code: percentiles are those of the capped sample instead of all
    calibration values [ours]. Ranges are extended to contain 0, so that 0 maps to 0 [ours]. Statistics are those of the
    float model; the code calibrates each layer on the outputs of the quantized layers before it [ours].
    """

    paper = "Li et al. 2023, RepQ-ViT (arXiv:2212.08254), released code"

    class Config(qplug.Config):
        """The candidates."""

        use: Literal["repq_vit.percentile"] = Field("repq_vit.percentile", description="name of the technique")
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
