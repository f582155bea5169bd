"""A sample of one operation as matrix products, whatever the operation is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

ToMatrix = Callable[[Tensor], Tensor]
"""Takes an operand in the layout of its site to the layout of the product."""


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
