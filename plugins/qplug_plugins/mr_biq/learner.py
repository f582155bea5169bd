"""Learner of binary-coded weights. Imported when a technique creates one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from qplug_plugins.mr_biq.coding import nearest, powers
from qplug_plugins.mr_biq.quantizer import BinaryCodingQuantizer, level_sums
from torch import Tensor, nn

from qplug import Learner, rectified_sigmoid, soft_bit_logits

MARGIN = 0.01
"""Least distance of initial soft bits from 0 and 1, where the clamp would stop their gradients."""
EDGE = 1e-4
"""Least distance of initial soft bits from ½."""

Learned = Literal["both", "scales", "codes"]
Turn = Literal["together", "alone"]


class SoftBinaryCoding(Learner):
    """w̃ = Σ alpha_i·(2·b̃_i − 1) + offset with soft bits b̃ in [0, 1]: scales and codes are learned together (Mr.BiQ).

    b̃ is AdaRound's rectified sigmoid of a logit. The paper's initialization of logits, and its treatment of bits that
    must change together, are not available [ours]:

    ``turn: together``: a weight is rounded to one of the two sums next to its float value, as on AdaRound's grid. The
    bits in which the codes of both sums differ share one logit. Its initial value makes w̃ equal to the float weight.

    ``turn: alone``: each bit of each weight has a logit. Every weight starts at the code of its nearest sum. If the
    next sum differs in a single bit, the initial value of this bit is between 0 and 1, such that w̃ equals the float
    weight. Bits that would have to change together start at 0 or 1, since changing only one leads to a distant sum.

    All initial soft bits have a distance of at least ``MARGIN`` from 0 and 1, so that the clamp passes every gradient.
    Without a bit between 0 and 1 to compensate, this changes w̃ by a fraction of at most 2·``MARGIN``. A bit between 0
    and 1 starts on its side of ½, so that hardening the initial state equals the quantizer's result for the weight.

    Args:
        weight: the float weight, (O, I) or (O, I, kh, kw), as ``start`` takes it.
        start: the initial binary coding; it is not modified.
        learn: ``both``, or only ``scales`` or ``codes``. Codes that are not learned are those of the nearest sums.
        turn: see above.
    """

    ratios: Tensor
    ends: Tensor | None
    hard: Tensor | None

    def __init__(
        self, weight: Tensor, start: BinaryCodingQuantizer, learn: Learned = "both", turn: Turn = "together"
    ) -> None:
        super().__init__()
        self.bits, self.shape, self.group_size, self.uniform = start.bits, weight.shape, start.group_size, start.uniform
        self.learn = learn
        alphas = start.alphas.to(weight.device)
        offset = None if start.offset is None else start.offset.to(weight.device)
        ratios = powers(self.bits) / (1 << (self.bits - 1)) if self.uniform else torch.ones(self.bits)
        self.register_buffer("ratios", ratios.to(alphas))
        scales, scaled = alphas[:, :1] if self.uniform else alphas, learn != "codes"
        self.scales = nn.Parameter(scales.clone(), requires_grad=scaled)
        self.offset = None if offset is None else nn.Parameter(offset.clone(), requires_grad=scaled)
        rows, soft, ends, hard = start.rows(weight.detach()).to(alphas), None, None, None
        if learn == "scales":
            hard = code_bits(nearest(rows, level_sums(alphas, offset)), self.bits).to(torch.int8)
        elif turn == "together":
            soft, ends = starting_share(rows, alphas, offset)
        else:
            soft = starting_bits(rows, alphas, offset)
        self.logits = None if soft is None else nn.Parameter(soft_bit_logits(soft))
        self.register_buffer("ends", ends)
        self.register_buffer("hard", hard)

    def learned(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """``scales``: alphas (only the first of a uniform coding) and offsets; ``codes``: the logits."""
        parameters: dict[str, Sequence[nn.Parameter]] = {}
        if self.learn != "codes":
            parameters["scales"] = [self.scales] if self.offset is None else [self.scales, self.offset]
        if self.logits is not None:
            parameters["codes"] = [self.logits]
        return parameters

    def forward(self, x: Tensor) -> Tensor:
        """The soft weight, in the weight's shape; ``x`` is not used."""
        alphas, bits = self.scales * self.ratios, self._bits(self.soft_bits())
        total = alphas[:, :1] * (2.0 * bits[0] - 1.0)
        for i in range(1, self.bits):
            total = total + alphas[:, i : i + 1] * (2.0 * bits[i] - 1.0)
        return (total if self.offset is None else total + self.offset).view(self.shape)

    def soft_bits(self) -> Tensor | None:
        """(rows, n), one per weight, or (q, rows, n), one per bit; ``None`` if codes are not learned."""
        return None if self.logits is None else rectified_sigmoid(self.logits)

    @torch.no_grad()
    def harden(self) -> tuple[BinaryCodingQuantizer, Tensor]:
        """The quantizer with the learned scales, and the sums of the codes that are nearest to the soft bits.

        The sums are computed as in the quantizer. Quantizing them again gives bit-identical values, whatever the order
        and the signs of the alphas. A learned code may differ from that of the sum nearest to the float weight.
        """
        alphas, soft = self.scales * self.ratios, self.soft_bits()
        quantizer = BinaryCodingQuantizer(alphas, self.offset, self.group_size, self.uniform)
        bits = self._bits(None if soft is None else (soft > 0.5).to(soft.dtype)) > 0.5
        codes = torch.zeros(bits.shape[1:], dtype=torch.int64, device=alphas.device)
        for bit in bits:
            codes = codes * 2 + bit
        return quantizer, level_sums(alphas, self.offset).gather(1, codes).view(self.shape)

    def _bits(self, soft: Tensor | None) -> Tensor:
        """(q, rows, n) bits of the codes, from the soft bits."""
        if soft is None:
            assert self.hard is not None
            return self.hard
        return soft if self.ends is None else torch.lerp(self.ends[0], self.ends[1], soft)


def code_bits(codes: Tensor, bits: int) -> Tensor:
    """(rows, n) int64 → (q, rows, n) 0 or 1, the most significant bit first."""
    positions = torch.arange(bits - 1, -1, -1, device=codes.device).view(-1, 1, 1)
    return (codes >> positions) & 1


def starting_share(w: Tensor, alphas: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """The initial position of every weight between the two sums next to it, or between the outermost two.

    Args:
        w: (rows, n) float.
        alphas: (rows, q) in w's dtype.
        offset: (rows, 1), or ``None``.

    Returns:
        (rows, n) in [MARGIN, 1 − MARGIN], above ½ if the upper sum is nearer; and (2, q, rows, n) the bits of the lower
        and of the upper sum, in w's dtype.
    """
    levels = level_sums(alphas, offset)
    ordered, codes = levels.sort(dim=1, stable=True)
    above = torch.searchsorted(ordered, w.contiguous()).clamp(1, ordered.shape[1] - 1)
    low, high = ordered.gather(1, above - 1), ordered.gather(1, above)
    share = ((w - low) / (high - low).masked_fill(high == low, torch.inf)).clamp(MARGIN, 1.0 - MARGIN)
    upper = levels.gather(1, nearest(w, levels)) == high  # the same rounding as in the quantizer
    share = torch.where(upper, share.clamp_min(0.5 + EDGE), share.clamp_max(0.5 - EDGE))
    ends = torch.stack([code_bits(codes.gather(1, index), alphas.shape[1]) for index in (above - 1, above)])
    return share, ends.to(w)


def starting_bits(w: Tensor, alphas: Tensor, offset: Tensor | None) -> Tensor:
    """The initial soft bits for ``turn: alone``.

    Args:
        w: (rows, n) float.
        alphas: (rows, q) in w's dtype.
        offset: (rows, 1), or ``None``.

    Returns:
        (q, rows, n) in [MARGIN, 1 − MARGIN], above ½ for the set bits of the nearest sum.
    """
    levels, middle = level_sums(alphas, offset), torch.zeros_like(alphas[:, :1]) if offset is None else offset
    ordered, by_size = levels.sort(dim=1, stable=True)
    code = nearest(w, levels)
    level = levels.gather(1, code)
    target = middle + (w - middle) / (1.0 - 2.0 * MARGIN)  # the margin moves every bit towards ½
    below = torch.searchsorted(ordered, level) - 1
    above = torch.searchsorted(ordered, level, right=True)
    beside = torch.where(target > level, above, below).clamp(0, levels.shape[1] - 1)
    gap = ordered.gather(1, beside) - level
    share = ((target - level) / gap.masked_fill(gap == 0.0, torch.inf)).clamp(0.0, 0.5 - MARGIN)
    first, second = (code_bits(c, alphas.shape[1]).to(w) for c in (code, by_size.gather(1, beside)))
    share = share.masked_fill((first != second).sum(0) != 1, 0.0)
    return MARGIN + (1.0 - 2.0 * MARGIN) * torch.lerp(first, second, share)
