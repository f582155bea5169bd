"""Learner of rounding: each weight is rounded up or down on the grid of its quantizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from qplug import Learner, UniformQuantizer, rectified_sigmoid, soft_bit_logits

EDGE = 1e-4


class LearnedRounding(Learner):
    """ŵ = s·(clip(⌊w/s⌋ + h(V) + z, l, h) − z), AdaRound's Eq. 22, with h the rectified sigmoid of Eq. 23.

    V starts at h(V) = w/s − ⌊w/s⌋, so that ŵ = w inside the range. At 0 and 1 the sigmoid is clipped and has no
    gradient, so h(V) starts at least ``EDGE`` away from both [ours].

    Args:
        weight: float32, any shape.
        start: the uniform quantizer whose bits, scale and zero point are used, symmetric or not.
        learn_scale: BRECQ-B (Mr.BiQ's comparison, Table A4, appendix C): the scale is learned, too, with
            straight-through gradients of ⌊w/s⌋.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, start: UniformQuantizer, learn_scale: bool = False) -> None:
        super().__init__()
        self.bits, self.start = start.bits, start
        self.register_buffer("weight", weight.detach())
        position = self.weight / start.scale
        self.logits = nn.Parameter(soft_bit_logits((position - position.floor()).clamp(EDGE, 1.0 - EDGE)))
        self.log_factor = nn.Parameter(torch.zeros_like(start.scale)) if learn_scale else None
        self.register_buffer("floor", None if learn_scale else position.floor())

    def learned(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """``codes``, and ``scales`` if the scale is learned."""
        learned: dict[str, list[nn.Parameter]] = {"codes": [self.logits]}
        if self.log_factor is not None:
            learned["scales"] = [self.log_factor]
        return learned

    def forward(self, x: Tensor) -> Tensor:
        """The soft weight; ``x`` is not used."""
        return self._values(self.soft_bits())

    def soft_bits(self) -> Tensor:
        """h(V), in the weight's shape."""
        return rectified_sigmoid(self.logits)

    @torch.no_grad()
    def harden(self) -> tuple[UniformQuantizer, Tensor]:
        """The quantizer, and the weight rounded up for soft bits of at least ½, down for others."""
        grid = self.start if self.log_factor is None else self.start.scaled(self.log_factor.exp())
        return grid, grid.infer(self._values((self.soft_bits() >= 0.5).to(self.logits.dtype)))

    def _values(self, bits: Tensor) -> Tensor:
        zero, scale, floor = self.start.zero_point, self.start.scale, self.floor
        if self.log_factor is not None:
            scale = scale * self.log_factor.exp()
            position = self.weight / scale
            floor = position + (position.floor() - position).detach()
        assert isinstance(floor, Tensor)
        return (torch.clamp(floor + bits + zero, self.start.low, self.start.high) - zero) * scale
