"""Running minima, maxima and means of one activation."""

from __future__ import annotations

import torch
from torch import Tensor

from qplug.core.types import Site, Smoothing
from qplug.quantization.calibration.product import Product
from qplug.quantization.calibration.sample_rows import SampleRows
from qplug.quantization.calibration.samplers import OperationSampler
from qplug.quantization.calibration.statistics import SiteStats


class RunningRanges:
    """Running minima, maxima and means of one activation over channels, heads and images.

    The values themselves are not stored. All tensors are updated in place, because new small tensors among the large
    tensors of a batch would fragment the heap (see ``SampleRows``).
    """

    def __init__(self, site: Site, images: int) -> None:
        self.site, self.images = site, images
        self.low = self.high = self.total = torch.zeros(0)
        self.count = 0
        self.heads: tuple[Tensor, Tensor] | None = None
        self.image_low, self.image_high = SampleRows(), SampleRows()
        self.smoothings: list[Smoothing] = []

    def update(self, x: Tensor, batch: int, constant: bool = False, known: bool = False) -> None:
        """Update the statistics with the activation ``x`` of ``batch`` images.

        Args:
            x: with its batch in front.
            batch: number of images.
            constant: ``x`` has no batch, and every image gets the same: its minimum is that of each image.
            known: the constant was part of an earlier batch, so only the images are new.
        """
        channels = x.movedim(self.site.channel_axis, -1)
        channels = channels.reshape(1 if constant else batch, -1, channels.shape[-1])
        low, high = channels.aminmax(dim=1)
        self.image_low.add(self.image_low.length, low.amin(1).expand(batch), self.images)
        self.image_high.add(self.image_high.length, high.amax(1).expand(batch), self.images)
        if known:
            return
        total = channels.sum((0, 1), dtype=torch.float64)
        if self.count == 0:
            self.low, self.high, self.total = low.amin(0), high.amax(0), total
        else:
            torch.minimum(self.low, low.amin(0), out=self.low)
            torch.maximum(self.high, high.amax(0), out=self.high)
            self.total += total
        self.count += channels.shape[0] * channels.shape[1]
        if self.site.head_axis is not None:
            least, most = x.movedim(self.site.head_axis, 0).flatten(1).aminmax(dim=1)
            if self.heads is None:
                self.heads = (least, most)
            torch.minimum(self.heads[0], least, out=self.heads[0])
            torch.maximum(self.heads[1], most, out=self.heads[1])

    def smooth(self, smoothing: Smoothing) -> None:
        """Apply a smoothing of the activation to the statistics."""
        self.smoothings.append(smoothing)

    def stats(self, sampler: OperationSampler, product: Product | None) -> SiteStats:
        """The statistics, with the sample of the operation that reads the activation."""
        stats = SiteStats(
            self.site,
            self.low.min(),
            self.high.max(),
            self.low,
            self.high,
            (self.total / self.count).to(torch.float32),
            self.image_low.values(),
            self.image_high.values(),
            self.low,
        )
        for smoothing in self.smoothings:
            stats = stats.smoothed(smoothing)
        stats.sample, stats.importance = sampler.sample(self.site)
        stats.product = product
        stats.to_matrix = sampler.rhs_matrix if self.site.role == "rhs" else sampler.lhs_matrix
        if self.heads is not None:
            stats.head_min, stats.head_max = self.heads
        return stats
