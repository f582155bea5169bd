"""A sample of one operation, written as matrix products: linear, convolution or matmul."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

ToMatrix = Callable[[Tensor], Tensor]
"""An operand in the layout of its site → the operand in the layout of the product."""


@dataclass(frozen=True)
class Product:
    """A sample of one operation (linear, convolution, matmul) as a batch of matrix products O = L Rᵀ.

    Attributes:
        lhs: (b, n, K) float32, sampled rows of the activations; b counts heads or convolution groups.
        rhs: (b, M, K) float32, the weight, or the other operand of attention.
        importance: (b, n, M) float32, (dL/dO)² of each sampled output; ``None`` gives every output the same weight.
        offset: (b, n, M) float32, the error of O that a quantized other operand already causes; ``None`` is 0.
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

    def select_rows(self, rows: Tensor, slices: int = 0) -> Product:
        """The product for these rows (int64) along n; or for these slices, if b counts ``slices`` times heads."""

        def select(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            return x.view(slices, -1, *x.shape[1:])[rows].flatten(0, 1) if slices else x[:, rows]

        lhs, rhs = select(self.lhs), select(self.rhs) if slices else self.rhs
        assert lhs is not None
        assert rhs is not None
        return Product(lhs, rhs, select(self.importance), select(self.offset))
