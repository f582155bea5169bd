"""Integer Softmax with I-BERT's polynomial for the exponential. Imported when a technique replaces a Softmax."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

A, B, C = 0.35815147, 0.96963238 / 0.35815147, 1.0 / 0.35815147
"""exp(p) ≈ A·(p² + B·p + C) on (−ln 2, 0], as in the authors' code (I-BERT prints 0.3585·(p + 1.353)² + 0.344)."""
DEEPEST = 30
"""exp is 0 below −DEEPEST·ln 2."""


class IntegerSoftmax(nn.Softmax):
    """Softmax over ``dim`` of integers x/step: exp(x) = 2^−q·exp(p), x = −q·ln 2 + p, in integer arithmetic.

    ln 2 is rounded to the nearest integer; the authors round it up, which doubles e^−10 at a step of 0.0625 [ours].
    Integers are stored in float64, which is exact here. The gradient is that of the exact Softmax, so that importance
    can be computed through it.
    """

    def __init__(self, dim: int, step: float) -> None:
        super().__init__(dim)
        self.axis, self.step = dim, step

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: any shape, floating point; mask: broadcasts to x and is added, as in attention over windows or texts."""
        x = x if mask is None else x + mask
        exact = torch.softmax(x, self.axis)
        values = self._values(x.detach()).to(x.dtype)
        return exact + (values - exact).detach() if x.requires_grad else values

    def _values(self, x: Tensor) -> Tensor:
        integers = torch.round(x.double() / self.step)
        integers = integers - integers.amax(self.axis, keepdim=True)
        ln2 = round(math.log(2) / self.step)
        integers = integers.clamp_min(-DEEPEST * ln2)
        q = torch.floor(-integers / ln2)
        p = integers + q * ln2
        polynomial = p * (p + math.floor(B / self.step)) + math.floor(C / self.step**2)
        exponential = torch.floor(polynomial * torch.exp2(DEEPEST - q)).clamp_min(0.0)
        return exponential / exponential.sum(self.axis, keepdim=True)

    def extra_repr(self) -> str:
        """Axis and step, for ``repr``, which is part of cache keys."""
        return f"dim={self.axis}, step={self.step}"
