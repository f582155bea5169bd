"""Error measures of a quantized tensor, and of the output of the operation that reads it."""

from __future__ import annotations

import torch
from torch import Tensor

from qplug.core.types import Granularity, Site
from qplug.quantization.calibration.product import Product, ToMatrix
from qplug.quantization.scale_layout import ScaleLayout


class ErrorMeasures:
    """Error measures over the sample of one site; ``SiteStats`` defines the attributes."""

    site: Site
    sample: Tensor
    product: Product | None
    importance: Tensor | None
    to_matrix: ToMatrix | None

    def output_error(self, quantized: Tensor, granularity: Granularity) -> Tensor:
        """Error of the operation's output if ``quantized`` replaces ``sample``: Σ importance·(Ô − O)².

        If the errors of several scales separate, the sum has one value per scale of ``granularity``: (O, 1, …) for
        per-channel weights, (H, 1, 1) per head. Otherwise the result is (). Without a product the error is
        Σ importance·(x̂ − x)².
        """
        errors = self._errors(quantized)
        return self._sum(errors, granularity) if self.product is None else self._sum_outputs(errors, granularity)

    def row_errors(self, quantized: Tensor) -> Tensor:
        """(rows,) the contribution of each row of the sample (see ``select_rows``) to ``output_error``."""
        errors = self._errors(quantized)
        if self.product is not None and not self._in_slices:
            return errors.sum((0, 2))
        return errors.reshape(len(self.sample), -1).sum(1)

    def cosine_distance(self, quantized: Tensor, granularity: Granularity) -> Tensor:
        """1 − cos(Ô, O) if ``quantized`` replaces ``sample``, with the scales and shapes of ``output_error``.

        Without a product, the distance is between the tensors x̂ and x. It is 1 if either is all zeros.
        """
        if self.product is None:
            reference, changed, total = self.sample, quantized, self._sum
        else:
            reference, total = self.product.output, self._sum_outputs
            changed = self._output_delta(quantized).add_(reference)
        norms = total(reference.square(), granularity) * total(changed.square(), granularity)
        return 1.0 - total(reference * changed, granularity) / norms.sqrt().clamp_min(torch.finfo(torch.float32).tiny)

    def value_error(self, quantized: Tensor, granularity: Granularity) -> Tensor:
        """Σ(x̂ − x)² over the sample, one value per scale of ``granularity``."""
        return self._sum((quantized - self.sample).square(), granularity)

    def sqnr_db(self, quantized: Tensor) -> float:
        """10·log10(Σx² / Σ(x − x̂)²) of the sample (MPTQ-ViT, Eq. 9); +inf without any error."""
        noise = (quantized - self.sample).double().square().sum()
        signal = self.sample.double().square().sum()
        return float(10.0 * torch.log10(signal / noise)) if noise > 0 else float("inf")

    def as_channels(self, values: Tensor) -> Tensor:
        """(C,) → the shape that broadcasts along the site's channel axis, for the weight or a batch of activations."""
        _, *trailing = ScaleLayout(self.site.channel_axis).shape(tuple(self.sample.shape))
        return values.reshape(-1, *trailing)

    @property
    def _is_right(self) -> bool:
        return self.site.role in ("weight", "rhs")

    @property
    def _in_slices(self) -> bool:
        """The product's first axis is slices of attention times heads, instead of groups."""
        return self.site.role in ("lhs", "rhs")

    def _errors(self, quantized: Tensor) -> Tensor:
        """importance·(Ô − O)², (b, n, M), or importance·(x̂ − x)² in the layout of ``sample`` without a product."""
        if self.product is None:
            errors, importance = (quantized - self.sample).square_(), self.importance
        else:
            errors, importance = self._output_delta(quantized).square_(), self.product.importance
        return errors if importance is None else errors.mul_(importance)

    def _output_delta(self, quantized: Tensor) -> Tensor:
        """(b, n, M) Ô − O, in a new buffer."""
        assert self.product is not None
        assert self.to_matrix is not None
        error = self.to_matrix(quantized - self.sample)
        left, right = (self.product.lhs, error) if self._is_right else (error, self.product.rhs)
        delta = torch.matmul(left, right.transpose(-2, -1))
        return delta if self.product.offset is None else delta.add_(self.product.offset)

    def _sum_outputs(self, values: Tensor, granularity: Granularity) -> Tensor:
        """Sum (b, n, M) over the outputs of each scale."""
        if self.site.kind.is_weight and granularity is Granularity.PER_CHANNEL:
            return self.as_channels(values.sum(1).flatten())
        if granularity is Granularity.PER_HEAD and self.site.head_axis is not None:
            heads = self.sample.shape[self.site.head_axis]
            return values.sum((1, 2)).view(-1, heads).sum(0).view(-1, 1, 1)
        return values.sum()

    def _sum(self, values: Tensor, granularity: Granularity) -> Tensor:
        """Sum values in the layout of ``sample`` over the elements of each scale."""
        return self._as_scales(self._by_scale(values, granularity).sum(1), granularity)

    def _by_scale(self, values: Tensor, granularity: Granularity) -> Tensor:
        """Values in the layout of ``sample`` → (scales, values per scale)."""
        return ScaleLayout.of(granularity, self.site).split(values)

    def _as_scales(self, values: Tensor, granularity: Granularity) -> Tensor:
        """One value per scale → the shape of the scales: (), (C, 1, …) or (H, 1, 1)."""
        return values.reshape(ScaleLayout.of(granularity, self.site).shape(tuple(self.sample.shape)))
