"""Computation of the alphas of a weight: initializations of the alternation, and the choice of its best result."""

from __future__ import annotations

import torch
from qplug_plugins.mr_biq.alternation import GAIN, alternate
from qplug_plugins.mr_biq.coding import Format, greedy, powers
from qplug_plugins.mr_biq.rows import SortedRows, sums_by_code
from torch import Tensor

from qplug import InputError

SHARES = 40
"""Number of candidates of the uniform initialization: fractions of a row's range, evenly spaced from 1/40 to 1."""


def in_groups(weight: Tensor, channels: int, group_size: int | None) -> Tensor:
    """A weight (O, I) or (O, I, kh, kw), as (rows, n); groups split each of its ``channels`` rows.

    ``channels`` is O, or 1 for one set of scales for the whole weight. A group has ``group_size`` consecutive weights
    along the flattened input axes of one output channel; ``None`` does not split.

    Raises:
        InputError: ``group_size`` does not divide the weights of an output channel.
    """
    if group_size is None:
        return weight.reshape(channels, -1)
    inputs = weight[0].numel()
    if group_size < 1 or inputs % group_size:
        raise InputError(
            f"groups of {group_size} do not divide the {inputs} weights of an output channel"
            f" (the weight is {tuple(weight.shape)})",
            fix=f"set a group_size that divides {inputs}, or none, or leave this weight to another technique",
        )
    return weight.reshape(-1, group_size)


def fit_binary(w: Tensor, bits: int, refine: bool = True, offset: bool = False) -> tuple[Tensor, Tensor | None]:
    """Alphas and offset of w ≈ Σ alpha_i·b_i (+ o): (rows, n) float → (rows, q) and (rows, 1), or ``None``.

    The coding is greedy, around the mean if there is an offset, and alternated with ``refine``. The alternation ends at
    a local minimum. A second one therefore starts from the best uniform grid, which is also a binary coding. With an
    offset, a third one starts from the best coding without an offset. Each row uses the best result [ours]. Its error
    is thus at most that of greedy coding, of the uniform grid, and of the coding without an offset. On DeiT-Ti, the
    second start reduces the squared error by 0.1 % or less at 2 bits and by 0.3 to 10 % at 4.

    Returns:
        alphas in w's dtype, none negative, the largest first, and offsets in w's dtype.
    """
    form, middle = Format(bits, offset=offset), w.mean(1, keepdim=True) if offset else None
    alphas, codes = greedy(w if middle is None else w - middle, bits)
    best = alphas if middle is None else torch.cat([alphas, middle], 1)
    if refine:
        rows = SortedRows(w)
        best, error = alternate(rows, best, form, sums_by_code(w.double(), codes, 1 << bits))
        starts = [_as_binary(*fit_grid(w, bits, offset, rows=rows), bits)]
        if offset:
            plain, _ = fit_binary(w, bits)
            starts.append(torch.cat([plain, torch.zeros_like(plain[:, :1])], 1))
        for start in starts:
            other, now = alternate(rows, start, form)
            better = now < error * (1.0 - GAIN)  # results may be equal up to rounding: the first one is used
            best, error = torch.where(better.unsqueeze(1), other, best), torch.where(better, now, error)
    best = best.to(w.dtype)
    return best[:, :bits].abs().sort(dim=1, descending=True).values, best[:, bits:] if offset else None


def fit_grid(
    w: Tensor, bits: int, offset: bool = True, refine: bool = True, rows: SortedRows | None = None
) -> tuple[Tensor, Tensor | None]:
    """Step and offset of w ≈ o + s·Σ 2^(q − i)·b_i: (rows, n) float → (rows, 1) and (rows, 1), or ``None``.

    The initial range is a fraction of the row's range, around its middle (around 0 without ``offset``). It has the
    least error of ``SHARES`` candidates, which include the whole range. With ``refine``, the result is alternated. The
    paper states neither the initialization of its uniform variant nor the values of its offset: here, it is any float,
    not only a multiple of the step [ours]. ``rows`` are the sorted rows of ``w``, if the caller has them.
    """
    rows = SortedRows(w) if rows is None else rows
    low, high = rows.w[:, :1], rows.w[:, -1:]
    middle = (low + high) * 0.5 if offset else torch.zeros_like(low)
    whole = torch.maximum(high - middle, middle - low) / ((1 << bits) - 1)
    best, least = whole, rows.grid_error(whole, middle, bits)
    for k in range(SHARES - 1, 0, -1):
        error = rows.grid_error(whole * (k / SHARES), middle, bits)
        better = error < least
        best, least = torch.where(better.unsqueeze(1), whole * (k / SHARES), best), torch.minimum(error, least)
    scales = torch.cat([best, middle], 1) if offset else best
    if refine:
        scales, _ = alternate(rows, scales, Format(bits, uniform=True, offset=offset))
    scales = scales.to(w.dtype)
    return scales[:, :1].abs(), scales[:, 1:] if offset else None


def _as_binary(step: Tensor, offset: Tensor | None, bits: int) -> Tensor:
    """Step (rows, 1) and offset (rows, 1) of a uniform grid → (rows, q) or (rows, q + 1) scales of a binary coding."""
    alphas = step * powers(bits).to(step)
    return alphas if offset is None else torch.cat([alphas, offset], 1)
