"""Statistics of a site for techniques: ranges and means over all images, and a sample of limited size."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from qplug.core.types import Granularity, Site, SiteKind, Smoothing
from qplug.quantization.calibration.errors import ErrorMeasures
from qplug.quantization.calibration.product import Product, ToMatrix


@dataclass
class SiteStats(ErrorMeasures):
    """Statistics of one site, in float32 on the model's device.

    Attributes:
        site: the site.
        min, max: () over every element of every calibration image; over the weight, for weights.
        channel_min, channel_max, channel_mean: (C,) along the site's channel axis.
        head_min, head_max: (H,), if the site has heads.
        image_min, image_max: (images,), the minimum and maximum of each image in the order of calibration.
        sample: a sample of limited size in the site's layout: (n, C) tokens; (n, C, kh, kw) patches of a convolution;
            (s, H, r, D) slices of attention; the complete weight, for weights.
        product: the operation that reads the site; ``None`` for the inputs of norms and Softmax.
        importance: (dL/dx)² at ``sample``, for the inputs of norms and Softmax if gradients were collected.
        to_matrix: converts the sample into the layout of ``product``.
    """

    site: Site
    min: Tensor
    max: Tensor
    channel_min: Tensor
    channel_max: Tensor
    channel_mean: Tensor
    image_min: Tensor
    image_max: Tensor
    sample: Tensor
    head_min: Tensor | None = None
    head_max: Tensor | None = None
    product: Product | None = None
    importance: Tensor | None = None
    to_matrix: ToMatrix | None = field(default=None, repr=False)

    @classmethod
    def from_tensor(cls, x: Tensor, site: Site | None = None) -> SiteStats:
        """Statistics of a complete tensor: an activation (images, …, C), or a weight with its ``site``."""
        x = x.detach().to(torch.float32)
        site = site or Site("tensor.input", SiteKind.LINEAR_INPUT, "tensor", "input", tuple(x.shape[1:]))
        channels = x.movedim(site.channel_axis, -1).flatten(0, -2)
        images = (x if not site.kind.is_weight else x.unsqueeze(0)).flatten(1)
        sample = x if site.kind.is_weight else x.flatten(0, -2)
        return cls(
            site,
            x.min(),
            x.max(),
            channels.amin(0),
            channels.amax(0),
            channels.mean(0),
            images.amin(1),
            images.amax(1),
            sample,
        )

    @property
    def channel_absmax(self) -> Tensor:
        """(C,) the largest magnitude of each channel."""
        return torch.maximum(self.channel_min.abs(), self.channel_max.abs())

    @cached_property
    def image_min_mean(self) -> Tensor:
        """() the average of ``image_min`` over the images (MPTQ-ViT's x_low)."""
        return self.image_min.mean()

    def quantile(self, q: float, granularity: Granularity = Granularity.PER_TENSOR) -> Tensor:
        """The ``q``-quantile (0 … 1, linear between neighbours) of the sample, in the shape of the scales."""
        values = self._by_scale(self.sample, granularity).sort(1).values  # torch.quantile refuses more than 2^24
        position = q * (values.shape[1] - 1)
        below = int(position)
        above = min(below + 1, values.shape[1] - 1)
        return self._as_scales(torch.lerp(values[:, below], values[:, above], position - below), granularity)

    def range(self, granularity: Granularity) -> tuple[Tensor, Tensor]:
        """(low, high) over all images, in the shape of the scales: (), (C, 1, …) or (H, 1, 1)."""
        if granularity is Granularity.PER_CHANNEL:
            return self.as_channels(self.channel_min), self.as_channels(self.channel_max)
        if granularity is Granularity.PER_HEAD and self.head_min is not None and self.head_max is not None:
            return self.head_min.view(-1, 1, 1), self.head_max.view(-1, 1, 1)
        return self.min, self.max

    def select_rows(self, rows: Tensor) -> SiteStats:
        """The statistics with these rows (int64) of the sample: tokens, patches, or slices of attention.

        The output errors of disjoint rows add up to the error of all rows. Ranges remain those of all images.
        """
        slices = len(self.sample) if self._in_slices else 0
        product = None if self.product is None else self.product.select_rows(rows, slices)
        if self.site.kind.is_weight:
            assert product is not None  # the rows of a weight are the rows of its operation's input
            return replace(self, product=product)
        importance = None if self.importance is None else self.importance[rows]
        return replace(self, sample=self.sample[rows], product=product, importance=importance)

    def with_quantized_operand(self, other: SiteStats, quantized: Tensor) -> SiteStats:
        """The statistics if ``quantized`` replaces ``other.sample``, the operation's other operand.

        Output errors still refer to the float output, so they include the error of the other operand.
        """
        assert self.product is not None
        assert other.to_matrix is not None
        operand, product = other.to_matrix(quantized), self.product
        if self._is_right:
            offset = torch.matmul(operand - product.lhs, product.rhs.transpose(-2, -1))
            return replace(self, product=Product(operand, product.rhs, product.importance, offset))
        offset = torch.matmul(product.lhs, (operand - product.rhs).transpose(-2, -1))
        return replace(self, product=Product(product.lhs, operand, product.importance, offset))

    def smoothed(self, smoothing: Smoothing) -> SiteStats:
        """The exact statistics of (Y − shift)/scale, except for ``image_min`` and ``image_max``.

        They become the extremes over all images: exact values need the channels of each image, and memory is bounded.
        """
        shift, scale = smoothing.shift, smoothing.scale
        low, high = (self.channel_min - shift) / scale, (self.channel_max - shift) / scale
        product = self.product
        if product is not None:
            product = replace(product, lhs=(product.lhs - shift) / scale)
        return replace(
            self,
            min=low.min(),
            max=high.max(),
            channel_min=low,
            channel_max=high,
            channel_mean=(self.channel_mean - shift) / scale,
            image_min=low.min().expand_as(self.image_min),
            image_max=high.max().expand_as(self.image_max),
            sample=(self.sample - shift) / scale,
            product=product,
        )
