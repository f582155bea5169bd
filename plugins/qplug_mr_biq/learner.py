"""A binary coding while it is learned. Imported when a technique makes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from qplug import Learner, rectified_sigmoid, soft_bit_logits
from qplug_mr_biq.coding import nearest, powers
from qplug_mr_biq.quantizer import BinaryCodingQuantizer, level_sums

MARGIN = 0.01
"""How far every soft bit starts from 0 and from 1, where the clamp would stop its gradient for good."""

Learned = Literal["both", "scales", "codes"]


class SoftBinaryCoding(Learner):
    """w̃ = Σ alpha_i·(2·b̃_i − 1) + offset with soft bits b̃ in [0, 1]: scales and codes are learned together (Mr.BiQ).

    b̃ is AdaRound's rectified sigmoid of a logit for each bit of each weight. How the paper starts the logits is not to
    be had. Here every weight starts at the code of its nearest sum [ours]. Where the next sum on its side differs in a
    single bit, that bit starts between 0 and 1 so that w̃ is the float weight, as where AdaRound starts. Bits that would
    have to turn together are not mixed, since each of them alone leads to a sum far away: on two layers of DeiT-Ti at 2
    and 3 bits (24 rows, synthetic correlated inputs) mixing them too ended at up to 1.6 times the error, and so did
    mixing none. All bits keep ``MARGIN`` from 0 and 1, so that the clamp passes every gradient; this draws w̃ to the
    middle by a share of at most 2·``MARGIN`` where no mixed bit makes up for it. A mixed bit stays on its side of ½, so
    that hardening the start gives exactly what the quantizer makes of the weight.

    Args:
        weight: the float weight, (O, I) or (O, I, kh, kw), as ``start`` takes it.
        start: the binary coding to start from; it is not changed.
        learn: ``both``, or ``scales`` or ``codes`` alone, the other staying as it is; codes that are not learned are
            those of the nearest sums.
    """

    ratios: Tensor
    hard: Tensor | None

    def __init__(self, weight: Tensor, start: BinaryCodingQuantizer, learn: Learned = "both") -> None:
        super().__init__()
        self.bits, self.shape, self.group_size, self.uniform = start.bits, weight.shape, start.group_size, start.uniform
        self.learn = learn
        alphas = start.alphas.to(weight.device)
        offset = None if start.offset is None else start.offset.to(weight.device)
        ratios = powers(self.bits) if self.uniform else torch.ones(self.bits)
        self.register_buffer("ratios", ratios.to(alphas))
        kept, scaled = alphas[:, -1:] if self.uniform else alphas, learn != "codes"
        self.scales = nn.Parameter(kept.clone(), requires_grad=scaled)
        self.offset = None if offset is None else nn.Parameter(offset.clone(), requires_grad=scaled)
        bits = starting_bits(start.rows(weight.detach()).to(alphas), alphas, offset)
        self.logits = None if learn == "scales" else nn.Parameter(soft_bit_logits(bits))
        self.register_buffer("hard", (bits > 0.5).to(torch.int8) if learn == "scales" else None)

    def learned(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """``scales``: alphas (of a uniform coding the last alone) and offsets; ``codes``: the logits."""
        found: dict[str, Sequence[nn.Parameter]] = {}
        if self.learn != "codes":
            found["scales"] = [self.scales] if self.offset is None else [self.scales, self.offset]
        if self.logits is not None:
            found["codes"] = [self.logits]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The soft weight, in the weight's shape; ``x`` is not used."""
        alphas, bits = self.scales * self.ratios, self._bits()
        total = alphas[:, :1] * (2.0 * bits[0] - 1.0)
        for i in range(1, self.bits):
            total = total + alphas[:, i : i + 1] * (2.0 * bits[i] - 1.0)
        return (total if self.offset is None else total + self.offset).view(self.shape)

    def soft_bits(self) -> Tensor | None:
        """(q, rows, n) b̃; ``None`` where codes are not learned."""
        return None if self.logits is None else rectified_sigmoid(self.logits)

    @torch.no_grad()
    def harden(self) -> tuple[BinaryCodingQuantizer, Tensor]:
        """The quantizer with the learned scales, and the sums of the codes that the soft bits are nearest to.

        The sums are computed as the quantizer computes them, so it leaves them as they are, bit for bit, whatever order
        and sign the alphas have by then. A code need not be that of the sum nearest to the float weight any more.
        """
        alphas = self.scales * self.ratios
        quantizer = BinaryCodingQuantizer(alphas, self.offset, self.group_size, self.uniform)
        values = torch.zeros(self._bits().shape[1:], dtype=torch.int64, device=alphas.device)
        for bit in self._bits() > 0.5:
            values = values * 2 + bit
        return quantizer, level_sums(alphas, self.offset).gather(1, values).view(self.shape)

    def _bits(self) -> Tensor:
        """(q, rows, n) soft bits, or hard ones where codes are not learned."""
        soft = self.soft_bits()
        if soft is None:
            assert self.hard is not None
            return self.hard
        return soft


def starting_bits(w: Tensor, alphas: Tensor, offset: Tensor | None) -> Tensor:
    """The soft bits that ``SoftBinaryCoding`` starts from.

    Args:
        w: (rows, n) float.
        alphas: (rows, q) in w's dtype.
        offset: (rows, 1), or ``None``.

    Returns:
        (q, rows, n) in [MARGIN, 1 − MARGIN], above ½ where the nearest sum has a set bit.
    """
    levels, middle = level_sums(alphas, offset), torch.zeros_like(alphas[:, :1]) if offset is None else offset
    ordered, by_size = levels.sort(dim=1, stable=True)
    code = nearest(w, levels)
    level = levels.gather(1, code)
    target = middle + (w - middle) / (1.0 - 2.0 * MARGIN)  # the margin draws every bit towards the middle
    below = torch.searchsorted(ordered, level) - 1
    above = torch.searchsorted(ordered, level, right=True)
    beside = torch.where(target > level, above, below).clamp(0, levels.shape[1] - 1)
    gap = ordered.gather(1, beside) - level
    share = ((target - level) / gap.masked_fill(gap == 0.0, torch.inf)).clamp(0.0, 0.5 - MARGIN)
    places = torch.arange(alphas.shape[1] - 1, -1, -1, device=w.device).view(-1, 1, 1)
    one, other = ((code >> places) & 1).to(w), ((by_size.gather(1, beside) >> places) & 1).to(w)
    share = share.masked_fill((one != other).sum(0) != 1, 0.0)
    return MARGIN + (1.0 - 2.0 * MARGIN) * torch.lerp(one, other, share)
