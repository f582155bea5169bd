"""Quantizers while they are learned, by reconstruction or training, and the soft bits of AdaRound, BRECQ and Mr.BiQ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qplug.quantization.quantizers.base import Quantizer, clamp_ste, fake_quantize, round_ste
from qplug.quantization.quantizers.uniform import UniformQuantizer

if TYPE_CHECKING:
    from qplug.quantization.plan import Decision

GAMMA, ZETA = -0.1, 1.1
"""Where AdaRound stretches the sigmoid to, so that soft bits reach 0 and 1 (Nagel et al. 2020, Eq. 23)."""


def rectified_sigmoid(logits: Tensor) -> Tensor:
    """clip(sigmoid(v)·(ζ − γ) + γ, 0, 1), AdaRound's Eq. 23: soft bits in [0, 1], any shape."""
    stretched = (torch.sigmoid(logits) * (ZETA - GAMMA)).add_(GAMMA)
    return nn.functional.hardtanh(stretched, 0.0, 1.0)  # a clamp whose gradient is one pass over memory, not four


def soft_bit_logits(bits: Tensor) -> Tensor:
    """The v whose rectified sigmoid is ``bits``, in [0, 1] (any shape)."""
    return torch.logit((bits - GAMMA) / (ZETA - GAMMA))


def bit_penalty(bits: Tensor, beta: float | Tensor) -> Tensor:
    """Σ (1 − |2b − 1|^β) over soft ``bits`` in [0, 1], AdaRound's Eq. 24: () float, 0 where every bit is 0 or 1."""
    result: Tensor = _BitPenalty.apply(bits, beta)
    return result


class _BitPenalty(torch.autograd.Function):
    """``bit_penalty``, with one power and few passes over memory: it is as much work as the soft weight itself."""

    @staticmethod
    def forward(ctx: Any, bits: Tensor, beta: float | Tensor) -> Tensor:
        """The sum, and what its gradient needs."""
        place = (bits * 2.0).sub_(1.0)
        power = place.abs().pow_(beta)
        ctx.save_for_backward(place, power)
        ctx.beta = beta
        return bits.numel() - power.sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """−2β·|2b − 1|^β/(2b − 1), which is 0 at ½ for β > 1."""
        place, power = ctx.saved_tensors
        return (power / (place + torch.finfo(place.dtype).tiny)).mul_(-2.0 * ctx.beta * gradient), None


class Learner(Quantizer):
    """A quantizer while it is learned: ``forward`` is what the operation sees, with gradients for its parameters.

    ``bits`` are those of the quantizer that it becomes. A weight's learner is made from the weight and ignores what it
    is given; an activation's quantizes what it is given.
    """

    kind = "learner"

    def learned(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """What is learned, by the name under which ``Reconstruction.rates`` knows it."""
        raise TypeError(f"{type(self).__name__} does not implement learned()")

    def soft_bits(self) -> Tensor | None:
        """Its soft bits in [0, 1], any shape, with gradients; ``None`` where it has none."""
        return None

    def penalty(self, beta: float | Tensor) -> Tensor:
        """() what it costs that soft bits are neither 0 nor 1, by the exponent β, which may be a () float tensor."""
        bits = self.soft_bits()
        return torch.zeros((), device=next(iter(self.parameters())).device) if bits is None else bit_penalty(bits, beta)

    def harden(self) -> tuple[Quantizer, Tensor | None]:
        """What it has become: a quantizer, and for a weight its values, which that quantizer leaves as they are."""
        raise TypeError(f"{type(self).__name__} does not implement harden()")

    def to_dict(self) -> dict[str, Any]:
        """A learner is not stored; what it becomes is."""
        raise TypeError(f"a {type(self).__name__} is still learned; store what harden() gives")


FARTHEST = 5.0
"""A step is learned within e^±5 times where it starts."""


class LearnedStepSize(Learner):
    """A quantizer whose scale is learned by straight-through gradients (LSQ), and its zero point where that is asked.

    Esser et al. 2020, Eq. 3, whose gradient is that of ``forward`` with rounding passed straight through. It is not
    divided by √(N·h) as theirs is: reconstruction and training optimize by Adam, which does not see a constant factor.
    The scale is learned as its logarithm relative to where it starts, ``scale·exp(u)``, so that it stays positive and
    one rate suits every layer; near the start that is their scale in units of itself [ours]. What is not uniform is
    learned as f·Q(x/f) with f = exp(u), whose gradient is the same where Q passes gradients straight through [ours].
    Channels that share a scale and a zero point go on sharing them.

    A zero point is learned as ``z + v·(h − l)``, as LSQ+ learns its offset (Bhalgat et al. 2020), in units of the range
    [ours]. One that starts as an integer is rounded to one, straight through, and stays within [l, h].

    Args:
        start: a quantizer that implements ``scaled``.
        zero_point: whether to learn the zero point too, where ``start`` has one.
    """

    members: Tensor | None

    def __init__(self, start: Quantizer, zero_point: bool = False) -> None:
        super().__init__()
        self.start, self.bits = start, start.bits
        self.register_buffer("members", _members(start))
        scale = start.scale if isinstance(start, UniformQuantizer) else next(start.buffers()).new_zeros(())
        distinct = torch.zeros_like(scale if self.members is None else self.members[0])
        self.log_factor = nn.Parameter(distinct)
        moves = zero_point and isinstance(start, UniformQuantizer) and not start.symmetric
        self.shift = nn.Parameter(distinct.clone()) if moves else None
        self._rounds = isinstance(start, UniformQuantizer) and bool(
            (start.zero_point == start.zero_point.round()).all()
        )

    def learned(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """``step_sizes``, and ``zero_points`` where they are learned."""
        steps = {"step_sizes": [self.log_factor]}
        return steps if self.shift is None else {**steps, "zero_points": [self.shift]}

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize ``x`` with the present scale and zero point."""
        factor = self.factor()
        if not isinstance(self.start, UniformQuantizer):
            values: Tensor = self.start(x / factor) * factor
            return values.to(x.dtype)
        zero = None if self.start.symmetric else self._zero_point(self.start)
        return fake_quantize(x, self.start.scale * factor, zero, self.start.low, self.start.high)

    def harden(self) -> tuple[Quantizer, None]:
        """The quantizer with the present scale and zero point."""
        made = self.start.scaled(self.factor().detach())
        if self.shift is not None and isinstance(self.start, UniformQuantizer):
            scale = self.start.scaled(self.factor().detach()).scale
            made = UniformQuantizer(scale, self._zero_point(self.start), self.start.bits, self.start.signed)
        return made, None

    def factor(self) -> Tensor:
        """By how much the scale is longer than it was, in its shape, or () where there are several kinds of steps."""
        return self._of_scales(self.log_factor.clamp(-FARTHEST, FARTHEST)).exp()

    def _zero_point(self, start: UniformQuantizer) -> Tensor:
        if self.shift is None:
            return start.zero_point
        moved = start.zero_point + self._of_scales(self.shift) * (start.high - start.low)
        return clamp_ste(round_ste(moved), start.low, start.high) if self._rounds else moved

    def _of_scales(self, distinct: Tensor) -> Tensor:
        if self.members is None:
            return distinct
        assert isinstance(self.start, UniformQuantizer)
        return (self.members @ distinct).view(self.start.scale.shape)


def _members(start: Quantizer) -> Tensor | None:
    """(scales, distinct ones) 1 where a scale with its zero point is that one; ``None`` where all are distinct."""
    if not isinstance(start, UniformQuantizer):
        return None
    pairs = torch.stack([start.scale.flatten(), start.zero_point.expand_as(start.scale).flatten()])
    distinct, place = torch.unique(pairs, dim=1, return_inverse=True)
    if distinct.shape[1] == pairs.shape[1]:
        return None
    return torch.nn.functional.one_hot(place).to(start.scale.dtype)


def learned_step_sizes(decisions: Iterable[Decision]) -> dict[str, Learner]:
    """A ``LearnedStepSize`` for every activation whose quantizer can be scaled, by the site's name."""
    return {
        d.site.name: LearnedStepSize(d.quantizer)
        for d in decisions
        if not d.site.kind.is_weight and type(d.quantizer).scaled is not Quantizer.scaled
    }
