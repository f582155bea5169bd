"""Learnable quantizers for reconstruction and training, and the soft bits of AdaRound, BRECQ and Mr.BiQ."""

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
"""Limits of AdaRound's stretched sigmoid, which lets soft bits reach 0 and 1 (Nagel et al. 2020, Eq. 23)."""


def rectified_sigmoid(logits: Tensor) -> Tensor:
    """clip(sigmoid(v)·(ζ − γ) + γ, 0, 1), AdaRound's Eq. 23: soft bits in [0, 1], any shape."""
    stretched = (torch.sigmoid(logits) * (ZETA - GAMMA)).add_(GAMMA)
    return nn.functional.hardtanh(stretched, 0.0, 1.0)  # its gradient takes one pass over memory; clamp's takes four


def soft_bit_logits(bits: Tensor) -> Tensor:
    """The inverse of ``rectified_sigmoid``: the logits v of soft ``bits`` in [0, 1], any shape."""
    return torch.logit((bits - GAMMA) / (ZETA - GAMMA))


def bit_penalty(bits: Tensor, beta: float | Tensor) -> Tensor:
    """Σ (1 − |2b − 1|^β) over soft ``bits`` in [0, 1], AdaRound's Eq. 24: () float, 0 if every bit is 0 or 1."""
    result: Tensor = _BitPenalty.apply(bits, beta)
    return result


class _BitPenalty(torch.autograd.Function):
    """``bit_penalty`` with one power and few passes over memory, because it costs as much as the soft weight itself."""

    @staticmethod
    def forward(ctx: Any, bits: Tensor, beta: float | Tensor) -> Tensor:
        """Compute the sum, and save the tensors of the gradient."""
        centered = (bits * 2.0).sub_(1.0)
        power = centered.abs().pow_(beta)
        ctx.save_for_backward(centered, power)
        ctx.beta = beta
        return bits.numel() - power.sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """−2β·|2b − 1|^β/(2b − 1), which is 0 at ½ for β > 1."""
        centered, power = ctx.saved_tensors
        return (power / (centered + torch.finfo(centered.dtype).tiny)).mul_(-2.0 * ctx.beta * gradient), None


class Learner(Quantizer):
    """A learnable quantizer: ``forward`` returns the operation's operand, with gradients for the parameters.

    ``harden`` converts it into the final quantizer, which has the same ``bits``. The learner of a weight is made from
    the weight and ignores the argument of ``forward``. The learner of an activation quantizes the argument.
    """

    kind = "learner"

    def learned(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """The learned parameters, by their names in ``Reconstruction.rates``."""
        raise TypeError(f"{type(self).__name__} does not implement learned()")

    def soft_bits(self) -> Tensor | None:
        """The soft bits in [0, 1], any shape, with gradients; ``None`` without soft bits."""
        return None

    def penalty(self, beta: float | Tensor) -> Tensor:
        """() the penalty of soft bits between 0 and 1, with the exponent ``beta``, which may be a () float tensor."""
        bits = self.soft_bits()
        return torch.zeros((), device=next(iter(self.parameters())).device) if bits is None else bit_penalty(bits, beta)

    def harden(self) -> tuple[Quantizer, Tensor | None]:
        """The final quantizer, and for a weight its values on the quantizer's grid."""
        raise TypeError(f"{type(self).__name__} does not implement harden()")

    def to_dict(self) -> dict[str, Any]:
        """Refused: a learner is not stored, only its final quantizer."""
        raise TypeError(f"a {type(self).__name__} cannot be stored; store the quantizer that harden() returns")


LARGEST_LOG_FACTOR = 5.0
"""A scale stays between e^−5 and e^5 times its initial value."""


class LearnedStepSize(Learner):
    """A quantizer whose scale, and optionally zero point, is learned by straight-through gradients (LSQ).

    Esser et al. 2020, Eq. 3: the gradient of ``forward`` with a straight-through gradient of rounding. LSQ's factor
    1/√(N·h) is omitted, because reconstruction and training use Adam, which is invariant to constant factors.

    The scale is learned as ``scale·exp(u)``, with the logarithm u of its ratio to the initial scale [ours]. It stays
    positive, and one rate suits every layer. Near u = 0, u is the relative change of LSQ's scale. A quantizer Q that is
    not uniform is learned as f·Q(x/f) with f = exp(u); the gradient is the same if Q passes gradients straight through
    [ours]. Channels with a common scale and zero point continue to share them.

    A zero point is learned as ``z + v·(h − l)``, as LSQ+ learns its offset (Bhalgat et al. 2020), in units of the range
    [ours]. An integer zero point is rounded with a straight-through gradient, and stays within [l, h].

    Args:
        start: the initial quantizer, which implements ``scaled``.
        zero_point: learn the zero point too, if ``start`` has one.
    """

    members: Tensor | None

    def __init__(self, start: Quantizer, zero_point: bool = False) -> None:
        super().__init__()
        self.start, self.bits = start, start.bits
        self.register_buffer("members", _members(start))
        scale = start.scale if isinstance(start, UniformQuantizer) else next(start.buffers()).new_zeros(())
        distinct = torch.zeros_like(scale if self.members is None else self.members[0])
        self.log_factor = nn.Parameter(distinct)
        learns_zero_point = zero_point and isinstance(start, UniformQuantizer) and not start.symmetric
        self.shift = nn.Parameter(distinct.clone()) if learns_zero_point else None
        self._rounds = isinstance(start, UniformQuantizer) and bool(
            (start.zero_point == start.zero_point.round()).all()
        )

    def learned(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """``step_sizes``, and ``zero_points`` if zero points are learned."""
        step_sizes = {"step_sizes": [self.log_factor]}
        return step_sizes if self.shift is None else {**step_sizes, "zero_points": [self.shift]}

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
        quantizer = self.start.scaled(self.factor().detach())
        if self.shift is not None and isinstance(self.start, UniformQuantizer):
            scale = self.start.scaled(self.factor().detach()).scale
            quantizer = UniformQuantizer(scale, self._zero_point(self.start), self.start.bits, self.start.signed)
        return quantizer, None

    def factor(self) -> Tensor:
        """The ratio of the present scale to the initial scale: in the scale's shape, or () without a uniform scale."""
        return self._expand_to_scales(self.log_factor.clamp(-LARGEST_LOG_FACTOR, LARGEST_LOG_FACTOR)).exp()

    def _zero_point(self, start: UniformQuantizer) -> Tensor:
        if self.shift is None:
            return start.zero_point
        shifted = start.zero_point + self._expand_to_scales(self.shift) * (start.high - start.low)
        return clamp_ste(round_ste(shifted), start.low, start.high) if self._rounds else shifted

    def _expand_to_scales(self, distinct: Tensor) -> Tensor:
        """Values of the distinct pairs (scale, zero point) → one value per scale, in the shape of the scale."""
        if self.members is None:
            return distinct
        assert isinstance(self.start, UniformQuantizer)
        return (self.members @ distinct).view(self.start.scale.shape)


def _members(start: Quantizer) -> Tensor | None:
    """(scales, distinct pairs), one-hot: which distinct pair (scale, zero point) each scale has.

    ``None`` if all pairs are distinct.
    """
    if not isinstance(start, UniformQuantizer):
        return None
    pairs = torch.stack([start.scale.flatten(), start.zero_point.expand_as(start.scale).flatten()])
    distinct, index = torch.unique(pairs, dim=1, return_inverse=True)
    if distinct.shape[1] == pairs.shape[1]:
        return None
    return torch.nn.functional.one_hot(index).to(start.scale.dtype)


def learned_step_sizes(decisions: Iterable[Decision]) -> dict[str, Learner]:
    """Site name → ``LearnedStepSize``, for every activation whose quantizer implements ``scaled``."""
    return {
        d.site.name: LearnedStepSize(d.quantizer)
        for d in decisions
        if not d.site.kind.is_weight and type(d.quantizer).scaled is not Quantizer.scaled
    }
