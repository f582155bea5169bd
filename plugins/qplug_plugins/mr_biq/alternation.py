"""In turn, scales from codes and codes from scales: the alternation that refines a binary coding."""

from __future__ import annotations

import torch
from qplug_plugins.mr_biq.coding import Format
from qplug_plugins.mr_biq.rows import SortedRows
from torch import Tensor

ROUNDS = 100
"""Alternations at most; a few rows of a layer at 4 bits need more than 50."""
GAIN = 1e-9
"""Share of its squared error by which a row must improve to be alternated again."""


def alternate(
    rows: SortedRows, scales: Tensor, form: Format, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """In turn, scales = least squares given the codes and codes = the nearest levels, until the error stays.

    Where codes make the system singular (every bit the same, bits that coincide, a single weight), the shortest of its
    solutions is taken. Rows are independent, and each keeps the best scales that it had, those of the start included:
    none ends above its start. At most ``ROUNDS`` rounds.

    Args:
        rows: the weights.
        scales: (rows, p) of the start.
        form: what they mean.
        start: the codes of the start as ``sums_by_code``, where they are not those of the nearest levels: scales for
            these are a second start, and each row goes on from the better one.

    Returns:
        scales (rows, p) float64, and the squared error (rows,) of the nearest of their levels.
    """
    best, basis = scales.double().clone(), form.basis().to(scales.device)
    counts, totals, error = rows.split(*form.ordered(best))
    if start is not None:  # one round from these, which may gain nothing where the nearest levels' codes would
        found = least_squares(*start, basis)
        others = rows.split(*form.ordered(found))
        better = others[2] < error
        best[better] = found[better]
        for kept, other in zip((counts, totals, error), others, strict=True):
            kept[better] = other[better]
    active, known = torch.arange(len(best), device=best.device), error
    for _ in range(ROUNDS):
        found = least_squares(counts, totals, basis)
        counts, totals, now = rows.split(*form.ordered(found))
        better = now < known * (1.0 - GAIN)
        if not better.all():
            active, rows = active[better], rows.take(better)
            counts, totals, found, now = counts[better], totals[better], found[better], now[better]
        if not len(active):
            break
        best[active], error[active], known = found, now, now
    return best, error


def least_squares(counts: Tensor, totals: Tensor, basis: Tensor) -> Tensor:
    """The shortest of the scales that minimize Σ(w − ŵ)² of each row, whose codes are known by their sums alone.

    Args:
        counts: (rows, 2^q) float64, as ``sums_by_code``.
        totals: likewise.
        basis: (2^q, p) float64.

    Returns:
        (rows, p) float64.
    """
    p = basis.shape[1]
    pairs = (basis.unsqueeze(2) * basis.unsqueeze(1)).view(len(basis), p * p)
    gram, right = (counts @ pairs).view(-1, p, p), (totals @ basis).unsqueeze(2)
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal(dim1=1, dim2=2)
    found = torch.cholesky_solve(right, factor)
    singular = (failed != 0) | ~(pivots.amin(1) > 1e-4 * pivots.amax(1))
    if singular.any():  # the pseudoinverse takes ten times as long
        inverse = torch.linalg.pinv(gram[singular], rtol=1e-10, hermitian=True)
        found[singular] = inverse @ right[singular]
    return found.squeeze(2)
