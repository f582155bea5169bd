"""What techniques know of a site: ranges and moments over all images, and a capped sample of its operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from qplug.core.types import Granularity, Site, SiteKind, Smoothing

ToMatrix = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Product:
    """A sample of one operation as a batch of matrix products: O = L Rᵀ, whatever it was (linear, convolution, matmul).

    Attributes:
        lhs: (b, n, K) float32, sampled rows of the activations; b counts heads or convolution groups.
        rhs: (b, M, K) float32, the weight, or the other operand of attention.
        importance: (b, n, M) float32, (dL/dO)² of each sampled output; ``None`` counts every output alike.
        offset: (b, n, M) float32, how far O is already from its float value because of the other operand, where that
            one is not in float; ``None`` is 0.
    """

    lhs: Tensor
    rhs: Tensor
    importance: Tensor | None = None
    offset: Tensor | None = None

    @cached_property
    def output(self) -> Tensor:
        """(b, n, M) the float value of O."""
        output = torch.matmul(self.lhs, self.rhs.transpose(-2, -1))
        return output if self.offset is None else output - self.offset

    def take(self, rows: Tensor, slices: int = 0) -> Product:
        """These rows (int64) along n, or where b counts ``slices`` times heads, these slices."""

        def taken(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            return x.view(slices, -1, *x.shape[1:])[rows].flatten(0, 1) if slices else x[:, rows]

        lhs, rhs = taken(self.lhs), taken(self.rhs) if slices else self.rhs
        assert lhs is not None
        assert rhs is not None
        return Product(lhs, rhs, taken(self.importance), taken(self.offset))


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

    def quantile(self, q: float, granularity: Granularity = Granularity.PER_TENSOR) -> Tensor:
        """The ``q``-quantile (0 … 1, linear between neighbours) of the sample, in the shape of the scales."""
        values = self._by_scale(self.sample, granularity).sort(1).values  # torch.quantile refuses more than 2^24
        place = q * (values.shape[1] - 1)
        below = int(place)
        above = min(below + 1, values.shape[1] - 1)
        return self._as_scales(torch.lerp(values[:, below], values[:, above], place - below), granularity)

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
        errors = self._errors(quantized)
        return self._sum(errors, granularity) if self.product is None else self._sum_outputs(errors, granularity)

    def row_errors(self, quantized: Tensor) -> Tensor:
        """(rows,) what each row of the sample, as ``take`` counts them, adds to ``output_error``."""
        errors = self._errors(quantized)
        if self.product is not None and not self._in_slices:
            return errors.sum((0, 2))
        return errors.reshape(len(self.sample), -1).sum(1)

    def take(self, rows: Tensor) -> SiteStats:
        """The same with these rows (int64) of the sample alone: tokens, patches, or slices of attention.

        Output errors over disjoint rows add up to those over all of them. Ranges stay those of every image.
        """

        def taken(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[rows]

        product = None if self.product is None else self.product.take(rows, len(self.sample) if self._in_slices else 0)
        if self.site.kind.is_weight:
            assert product is not None  # a weight's rows are those of what it reads
            return replace(self, product=product)
        return replace(self, sample=self.sample[rows], product=product, importance=taken(self.importance))

    def cosine_distance(self, quantized: Tensor, granularity: Granularity) -> Tensor:
        """1 − cos(Ô, O) if ``sample`` becomes ``quantized``, over what one scale answers for, as ``output_error``.

        Without a product it is that of the tensor itself. 1 where either is all zeros.
        """
        if self.product is None:
            float_, moved, total = self.sample, quantized, self._sum
        else:
            float_, total = self.product.output, self._sum_outputs
            moved = self._output_delta(quantized).add_(float_)
        norms = total(float_.square(), granularity) * total(moved.square(), granularity)
        return 1.0 - total(float_ * moved, granularity) / norms.sqrt().clamp_min(torch.finfo(torch.float32).tiny)

    def given(self, other: SiteStats, quantized: Tensor) -> SiteStats:
        """The same statistics beside the operation's other operand, ``quantized`` in the place of ``other.sample``.

        Errors of outputs are still against the float output, so they hold what the other operand alone loses.
        """
        assert self.product is not None
        assert other.to_matrix is not None
        moved, product = other.to_matrix(quantized), self.product
        if self._is_right:
            offset = torch.matmul(moved - product.lhs, product.rhs.transpose(-2, -1))
            return replace(self, product=Product(moved, product.rhs, product.importance, offset))
        offset = torch.matmul(product.lhs, (moved - product.rhs).transpose(-2, -1))
        return replace(self, product=Product(product.lhs, moved, product.importance, offset))

    @property
    def _is_right(self) -> bool:
        return self.site.role in ("weight", "rhs")

    @property
    def _in_slices(self) -> bool:
        """Whether the product's first axis is slices of attention times heads, instead of groups."""
        return self.site.role in ("lhs", "rhs")

    def _errors(self, quantized: Tensor) -> Tensor:
        """importance·(Ô − O)², (b, n, M), or importance·(x̂ − x)² in the layout of ``sample`` without a product."""
        if self.product is None:
            errors, importance = (quantized - self.sample).square_(), self.importance
        else:
            errors, importance = self._output_delta(quantized).square_(), self.product.importance
        return errors if importance is None else errors.mul_(importance)

    def _output_delta(self, quantized: Tensor) -> Tensor:
        """(b, n, M) Ô − O, in a buffer of its own."""
        assert self.product is not None
        assert self.to_matrix is not None
        moved = self.to_matrix(quantized - self.sample)
        left, right = (self.product.lhs, moved) if self._is_right else (moved, self.product.rhs)
        delta = torch.matmul(left, right.transpose(-2, -1))
        return delta if self.product.offset is None else delta.add_(self.product.offset)

    def _sum_outputs(self, values: Tensor, granularity: Granularity) -> Tensor:
        """Sum (b, n, M) over everything that one scale answers for."""
        if self.site.kind.is_weight and granularity is Granularity.PER_CHANNEL:
            return self.as_channels(values.sum(1).flatten())
        if granularity is Granularity.PER_HEAD and self.site.head_axis is not None:
            heads = self.sample.shape[self.site.head_axis]
            return values.sum((1, 2)).view(-1, heads).sum(0).view(-1, 1, 1)
        return values.sum()

    def _sum(self, values: Tensor, granularity: Granularity) -> Tensor:
        """Likewise for values in the layout of ``sample``."""
        return self._as_scales(self._by_scale(values, granularity).sum(1), granularity)

    def _by_scale(self, values: Tensor, granularity: Granularity) -> Tensor:
        """Values in the layout of ``sample`` → (scales, values of each)."""
        axis = {Granularity.PER_CHANNEL: self.site.channel_axis, Granularity.PER_HEAD: self.site.head_axis}
        along = axis.get(granularity)
        return values.flatten().unsqueeze(0) if along is None else values.movedim(along, 0).flatten(1)

    def _as_scales(self, values: Tensor, granularity: Granularity) -> Tensor:
        """One value a scale → the shape of the scales: (), (C, 1, …) or (H, 1, 1)."""
        if granularity is Granularity.PER_CHANNEL:
            return self.as_channels(values)
        heads = granularity is Granularity.PER_HEAD and self.site.head_axis is not None
        return values.view(-1, 1, 1) if heads else values[0]

    def value_error(self, quantized: Tensor, granularity: Granularity) -> Tensor:
        """Σ(x̂ − x)² of the sample, summed over everything that one scale of ``granularity`` answers for."""
        return self._sum((quantized - self.sample).square(), granularity)

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
