"""Alternation that refines a binary coding: scales from codes, then codes from scales."""

from __future__ import annotations

import torch
from qplug_plugins.mr_biq.coding import Format
from qplug_plugins.mr_biq.rows import SortedRows
from torch import Tensor

ROUNDS = 100
"""Largest number of alternations; a few rows of a layer at 4 bits need more than 50."""
GAIN = 1e-9
"""Smallest relative improvement of a row's squared error for another alternation."""


def alternate(
    rows: SortedRows, scales: Tensor, form: Format, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Alternate scales = least squares for the codes, and codes = nearest levels, until the error is constant.

    If the codes make the system singular (constant bits, equal bits, a single weight), its solution of least norm is
    used. Rows are independent. Each returns its best scales, the initial ones included, so its error never increases.
    There are at most ``ROUNDS`` rounds.

    Args:
        rows: the weights.
        scales: (rows, p) initial scales.
        form: the format of the scales.
        start: initial codes as ``sums_by_code``, if they are not those of the nearest levels. Their least-squares
            scales are a second start, and each row continues from the better one.

    Returns:
        scales (rows, p) float64, and the squared error (rows,) of their nearest levels.
    """
    best, basis = scales.double().clone(), form.basis().to(scales.device)
    counts, totals, error = rows.split(*form.ordered(best))
    if start is not None:  # one round from the given codes; the nearest levels' codes may be the better start
        solution = least_squares(*start, basis)
        others = rows.split(*form.ordered(solution))
        better = others[2] < error
        best[better] = solution[better]
        for current, other in zip((counts, totals, error), others, strict=True):
            current[better] = other[better]
    active, previous = torch.arange(len(best), device=best.device), error
    for _ in range(ROUNDS):
        solution = least_squares(counts, totals, basis)
        counts, totals, now = rows.split(*form.ordered(solution))
        better = now < previous * (1.0 - GAIN)
        if not better.all():
            active, rows = active[better], rows.take(better)
            counts, totals, solution, now = counts[better], totals[better], solution[better], now[better]
        if not len(active):
            break
        best[active], error[active], previous = solution, now, now
    return best, error


def least_squares(counts: Tensor, totals: Tensor, basis: Tensor) -> Tensor:
    """The scales of least norm that minimize Σ(w − ŵ)² of each row, from the counts and sums of its codes.

    Args:
        counts: (rows, 2^q) float64, as in ``sums_by_code``.
        totals: (rows, 2^q) float64, as in ``sums_by_code``.
        basis: (2^q, p) float64.

    Returns:
        (rows, p) float64.
    """
    p = basis.shape[1]
    pairs = (basis.unsqueeze(2) * basis.unsqueeze(1)).view(len(basis), p * p)
    gram, right = (counts @ pairs).view(-1, p, p), (totals @ basis).unsqueeze(2)
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal(dim1=1, dim2=2)
    solution = torch.cholesky_solve(right, factor)
    singular = (failed != 0) | ~(pivots.amin(1) > 1e-4 * pivots.amax(1))
    if singular.any():  # the pseudoinverse is ten times slower
        inverse = torch.linalg.pinv(gram[singular], rtol=1e-10, hermitian=True)
        solution[singular] = inverse @ right[singular]
    return solution.squeeze(2)
