"""What techniques know of a site: ranges and moments over all images, and a capped sample of its operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from qplug.types import Granularity, Site, SiteKind, Smoothing

ToMatrix = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Product:
    """A sample of one operation as a batch of matrix products: O = L Rᵀ, whatever it was (linear, convolution, matmul).

    Attributes:
        lhs: (b, n, K) float32, sampled rows of the activations; b counts heads or convolution groups.
        rhs: (b, M, K) float32, the weight, or the other operand of attention.
        importance: (b, n, M) float32, (dL/dO)² of each sampled output; ``None`` counts every output alike.
    """

    lhs: Tensor
    rhs: Tensor
    importance: Tensor | None = None


@dataclass
class SiteStats:
    """Statistics of one site, in float32 on the model's device.

    Attributes:
        site: the site.
        min, max: () over every element of every calibration image (of the weight, for weights).
        channel_min, channel_max, channel_mean: (C,) along the site's channel axis.
        head_min, head_max: (H,), where the site has heads.
        image_min, image_max: (images,), each image's extremes in the order of calibration.
        sample: a capped sample in the site's own layout: (n, C) tokens; (n, C, kh, kw) patches of a convolution;
            (s, H, r, D) slices of attention; for a weight, the whole of it.
        product: the operation that reads the site, ``None`` for the inputs of norms and Softmax.
        importance: (dL/dx)² at ``sample``, for the inputs of norms and Softmax where gradients were collected.
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
        """Statistics of a tensor that is all there: (images, …, C) of an activation, or a weight with its ``site``."""
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
        """() the average over images of the smallest value (MPTQ-ViT's x_low)."""
        return self.image_min.mean()

    def quantile(self, q: float) -> Tensor:
        """() the ``q``-quantile (0 … 1, linear between neighbours) of the sample."""
        flat = self.sample.flatten().sort().values  # torch.quantile refuses more than 2^24 elements
        place = q * (flat.numel() - 1)
        below = int(place)
        above = min(below + 1, flat.numel() - 1)
        return torch.lerp(flat[below], flat[above], place - below)

    def range(self, granularity: Granularity) -> tuple[Tensor, Tensor]:
        """(low, high) over all images, in the shape of the scales: (), (C, 1, …) or (H, 1, 1)."""
        if granularity is Granularity.PER_CHANNEL:
            return self.as_channels(self.channel_min), self.as_channels(self.channel_max)
        if granularity is Granularity.PER_HEAD and self.head_min is not None and self.head_max is not None:
            return self.head_min.view(-1, 1, 1), self.head_max.view(-1, 1, 1)
        return self.min, self.max

    def as_channels(self, values: Tensor) -> Tensor:
        """(C,) → the shape that broadcasts along the site's channel axis, for the weight or a batch of activations."""
        axis = self.site.channel_axis
        trailing = self.sample.dim() - 1 - axis if axis >= 0 else -axis - 1
        return values.reshape(-1, *[1] * trailing)

    def output_error(self, quantized: Tensor, granularity: Granularity) -> Tensor:
        """How far the operation's output moves if ``sample`` becomes ``quantized``: Σ importance·(Ô − O)².

        The sum runs over everything that one scale of ``granularity`` answers for, where the errors of several scales
        separate: (O, 1, …) for per-channel weights, (H, 1, 1) per head, () otherwise. Without a product it is
        Σ importance·(x̂ − x)².
        """
        delta = quantized - self.sample
        if self.product is None or self.to_matrix is None:
            weighted = delta.square() if self.importance is None else delta.square() * self.importance
            return _sum_to(weighted, self.site, granularity, self)
        product = self.product
        other = product.lhs if self.site.role in ("weight", "rhs") else product.rhs
        left, right = (
            (other, self.to_matrix(delta)) if self.site.role in ("weight", "rhs") else (self.to_matrix(delta), other)
        )
        error = torch.matmul(left, right.transpose(-2, -1)).square_()
        if product.importance is not None:
            error.mul_(product.importance)
        if self.site.kind.is_weight and granularity is Granularity.PER_CHANNEL:
            return self.as_channels(error.sum(1).flatten())
        if granularity is Granularity.PER_HEAD and self.site.head_axis is not None:
            heads = self.sample.shape[self.site.head_axis]
            return error.sum((1, 2)).view(-1, heads).sum(0).view(-1, 1, 1)
        return error.sum()

    def value_error(self, quantized: Tensor, granularity: Granularity) -> Tensor:
        """Σ(x̂ − x)² of the sample, summed over everything that one scale of ``granularity`` answers for."""
        return _sum_to((quantized - self.sample).square(), self.site, granularity, self)

    def sqnr_db(self, quantized: Tensor) -> float:
        """10·log10(Σx² / Σ(x − x̂)²) of the sample (MPTQ-ViT, Eq. 9); +inf where nothing was lost."""
        noise = (quantized - self.sample).double().square().sum()
        signal = self.sample.double().square().sum()
        return float(10.0 * torch.log10(signal / noise)) if noise > 0 else float("inf")

    def smoothed(self, smoothing: Smoothing) -> SiteStats:
        """The statistics of (Y − shift)/scale, exactly, but that each image's extremes become those of all.

        Extremes of each image would need each image's channels, which a bounded memory cannot keep.
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


def _sum_to(error: Tensor, site: Site, granularity: Granularity, stats: SiteStats) -> Tensor:
    if granularity is Granularity.PER_CHANNEL:
        axis = site.channel_axis if site.channel_axis >= 0 else error.dim() + site.channel_axis
        return stats.as_channels(error.movedim(axis, 0).flatten(1).sum(1))
    if granularity is Granularity.PER_HEAD and site.head_axis is not None:
        return error.movedim(site.head_axis, 0).flatten(1).sum(1).view(-1, 1, 1)
    return error.sum()
