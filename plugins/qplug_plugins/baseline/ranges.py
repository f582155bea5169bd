"""Range estimators: minimum and maximum, moving averages, percentiles, and least squares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from qplug_plugins.baseline.parts import min_max, narrowed

import qplug
from qplug import Granularity, QuantizerChoice, QuantSpec, Site, Technique, hookimpl

if TYPE_CHECKING:
    from qplug import SiteStats

USE = "name of the technique"


class MinMax(Technique):
    """The range from the smallest to the largest calibration value."""

    paper = "Jacob et al. 2018, Quantization and Training of Neural Networks for Integer-Arithmetic-Only Inference"

    class Config(qplug.Config):
        """No parameters."""

        use: Literal["baseline.minmax"] = Field("baseline.minmax", description=USE)

    @hookimpl(trylast=True)
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice:
        """Take every site."""
        return min_max(spec, stats, "min-max")


class Ema(Technique):
    """An exponential moving average of the minimum and maximum of each image; weights use min-max ranges.

    The average runs over images, not over batches as in Jacob et al., so that the result does not depend on the batch
    size [ours]. Per-image extremes are only recorded for whole tensors, so sites with several scales are left to the
    next technique. After a smoothing, the extremes are those over all images.
    """

    paper = "Jacob et al. 2018, section 3.1"

    class Config(qplug.Config):
        """The momentum."""

        use: Literal["baseline.ema"] = Field("baseline.ema", description=USE)
        momentum: float = Field(0.9, ge=0.0, lt=1.0, description="weight of the previous average, without unit")

    @hookimpl(trylast=True)
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        """Take weights, and activations with one scale."""
        from qplug import make_quantizer

        if site.kind.is_weight:
            return min_max(spec, stats, "min-max of the weight")
        if spec.granularity is not Granularity.PER_TENSOR:
            return None
        low, high = stats.image_min[0], stats.image_max[0]
        for i in range(1, len(stats.image_min)):
            low = self.config.momentum * low + (1.0 - self.config.momentum) * stats.image_min[i]
            high = self.config.momentum * high + (1.0 - self.config.momentum) * stats.image_max[i]
        return QuantizerChoice(make_quantizer(spec, low, high), f"moving average {self.config.momentum:g}")


class Percentile(Technique):
    """The range between two percentiles of the sampled values; weights use min-max ranges.

    It quantizes activations with one scale; sites with several scales are left to the next technique.
    """

    paper = "Wu et al. 2020, Integer Quantization for Deep Learning Inference, section 5.2; Q-MLP uses 99 %"

    class Config(qplug.Config):
        """The percentile."""

        use: Literal["baseline.percentile"] = Field("baseline.percentile", description=USE)
        percentile: float = Field(99.0, gt=50.0, le=100.0, description="percentage of the values inside the range")

    @hookimpl(trylast=True)
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice | None:
        """Take weights, and activations with one scale."""
        from qplug import make_quantizer

        if site.kind.is_weight:
            return min_max(spec, stats, "min-max of the weight")
        if spec.granularity is not Granularity.PER_TENSOR:
            return None
        top = self.config.percentile / 100.0
        low = stats.quantile(1.0 - top) if stats.min < 0 else stats.min
        return QuantizerChoice(make_quantizer(spec, low, stats.quantile(top)), f"{self.config.percentile:g} %")


class Mse(Technique):
    """The range that minimizes the squared error of the tensor itself, by search over factors of the min-max range."""

    paper = "Nagel et al. 2021, A White Paper on Neural Network Quantization, section 3.1"

    class Config(qplug.Config):
        """The search."""

        use: Literal["baseline.mse"] = Field("baseline.mse", description=USE)
        candidates: int = Field(24, ge=2, le=1000, description="coarse candidates, geometrically spaced")
        refine: int = Field(8, ge=0, le=1000, description="fine candidates around the best coarse one")
        low: float = Field(0.02, gt=0.0, le=1.0, description="smallest factor of the min-max range, without unit")
        high: float = Field(1.2, ge=1.0, le=4.0, description="largest factor of the min-max range, without unit")

    @hookimpl(trylast=True)
    def qplug_make_quantizer(self, site: Site, spec: QuantSpec, stats: SiteStats) -> QuantizerChoice:
        """Take every site."""
        return narrowed(spec, stats, self.config, "value", "least squares")
