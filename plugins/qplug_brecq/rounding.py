"""Rounding that is learned: each weight goes to one of its two neighbours on the grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from qplug import Learner, UniformQuantizer, bit_penalty, rectified_sigmoid, soft_bit_logits

EDGE = 1e-4


class LearnedRounding(Learner):
    """ŵ = s·(clip(⌊w/s⌋ + h(V) + z, l, h) − z), AdaRound's Eq. 22, with h the rectified sigmoid of Eq. 23.

    It starts where h(V) = w/s − ⌊w/s⌋, so that ŵ = w inside the range. Where that is 0 or 1 the sigmoid's edge would
    pass no gradient; it is kept ``EDGE`` away from both [ours].

    Args:
        weight: float32, any shape.
        start: the grid, whose bits, scale and zero point stay; symmetric or not.
        learn_scale: BRECQ-B (Mr.BiQ's comparison, Table A4): the scale is learned too. w/s is floored once, at the
            first scale, so that the neighbours stay the same and no straight-through gradient is needed [ours].
    """

    def __init__(self, weight: Tensor, start: UniformQuantizer, learn_scale: bool = False) -> None:
        super().__init__()
        self.bits, self.start = start.bits, start
        place = weight.detach() / start.scale
        self.register_buffer("floor", place.floor())
        self.logits = nn.Parameter(soft_bit_logits((place - place.floor()).clamp(EDGE, 1.0 - EDGE)))
        self.log_factor = nn.Parameter(torch.zeros_like(start.scale)) if learn_scale else None

    def learned(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """``codes``, and ``scales`` where the scale is learned too."""
        learned: dict[str, list[nn.Parameter]] = {"codes": [self.logits]}
        if self.log_factor is not None:
            learned["scales"] = [self.log_factor]
        return learned

    def forward(self, x: Tensor) -> Tensor:
        """The soft weight, whatever ``x`` is."""
        return self._values(rectified_sigmoid(self.logits))

    def penalty(self, beta: float) -> Tensor:
        """Eq. 24."""
        return bit_penalty(rectified_sigmoid(self.logits), beta)

    @torch.no_grad()
    def harden(self) -> tuple[UniformQuantizer, Tensor]:
        """The grid, and each weight at the neighbour that its bit is nearer to."""
        grid = self.start if self.log_factor is None else self.start.scaled(self.log_factor.exp())
        values = self._values((rectified_sigmoid(self.logits) >= 0.5).to(self.logits.dtype))
        return grid, grid.infer(values)

    def _values(self, bits: Tensor) -> Tensor:
        zero = self.start.zero_point
        scale = self.start.scale if self.log_factor is None else self.start.scale * self.log_factor.exp()
        assert isinstance(self.floor, Tensor)
        codes = torch.clamp(self.floor + bits + zero, self.start.low, self.start.high) - zero
        return codes * scale
