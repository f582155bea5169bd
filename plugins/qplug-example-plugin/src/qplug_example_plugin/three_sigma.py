"""Ranges of so many standard deviations around the mean.

Torch is not imported here: ``qplug validate`` reads this module too, and stays fast. What needs it is reached through
``qplug``, which imports on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import qplug

if TYPE_CHECKING:
    from torch import Tensor


class ThreeSigma(qplug.Technique):
    """Clip each range to mean ± k·std, and never beyond the values that were seen.

    A Gaussian tensor keeps 99.7 % of its values at k = 3, with a step several times finer than min-max gives where a
    few outliers stretch the range; what lies outside saturates. Mean and std are those of the sample that the
    statistics keep, one pair for each scale of the site's granularity.
    """

    paper = "Textbook: the three-sigma rule; see Migacz, 8-bit Inference with TensorRT (2017), on why to saturate."

    class Config(qplug.Config):
        """``- use: example.three_sigma``."""

        use: Literal["example.three_sigma"] = "example.three_sigma"
        k: float = Field(3.0, gt=0, le=100, description="half-width of the range, in standard deviations")

    @qplug.hookimpl
    def qplug_make_quantizer(
        self, site: qplug.Site, spec: qplug.QuantSpec, stats: qplug.SiteStats
    ) -> qplug.QuantizerChoice:
        """Take every site that comes this far."""
        low, high = stats.range(spec.granularity)
        axis = {"per_channel": site.channel_axis, "per_head": site.head_axis}.get(spec.granularity.value)
        mean, std = _moments(stats.sample, axis if low.dim() else None)
        reach = self.config.k * std.reshape(low.shape)
        mean = mean.reshape(low.shape)
        quantizer = qplug.UniformQuantizer.from_range(low.maximum(mean - reach), high.minimum(mean + reach), spec)
        return qplug.QuantizerChoice(quantizer, f"mean ± {self.config.k:g}σ")


def _moments(sample: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of ``sample``: () each, or (size of ``axis``,) where there is one."""
    rows = sample.reshape(1, -1) if axis is None else sample.movedim(axis, 0).flatten(1)
    return rows.mean(1), rows.std(1, correction=0)  # the correction would divide by zero where there is one value
