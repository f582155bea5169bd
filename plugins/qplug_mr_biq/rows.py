"""Rows sorted once, so that a round of alternation costs O(2^q·log n) a row instead of O(n)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def between(ordered: Tensor) -> Tensor:
    """(rows, L) ascending → (rows, L − 1): up to where each level is taken; never as far as the next level."""
    low, high = ordered[:, :-1], ordered[:, 1:]
    middle = (low + high) * 0.5
    return torch.where(middle >= high, low, middle)


def sums_by_code(w: Tensor, codes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(rows, n) float and codes below ``count`` → (rows, count) how many values each code has, and their sum."""
    empty = w.new_zeros(len(w), count)
    return empty.scatter_add(1, codes, torch.ones_like(w)), empty.scatter_add(1, codes, w)


def least_squares(counts: Tensor, totals: Tensor, basis: Tensor) -> Tensor:
    """The shortest of the scales that minimise Σ(w − ŵ)² of each row, whose codes are known by their sums alone.

    Args:
        counts: (rows, 2^q) float64, as ``sums_by_code``.
        totals: likewise.
        basis: (2^q, p) float64.

    Returns:
        (rows, p) float64.
    """
    p = basis.shape[1]
    pairs = (basis.unsqueeze(2) * basis.unsqueeze(1)).view(len(basis), p * p)
    gram = (counts @ pairs).view(-1, p, p)
    inverse: Tensor = torch.linalg.pinv(gram, rtol=1e-10, hermitian=True)
    return (inverse @ (totals @ basis).unsqueeze(2)).squeeze(2)


class SortedRows:
    """Any levels cut a sorted row into runs, whose sums are differences of prefix sums.

    Args:
        w: (rows, n) float.
    """

    def __init__(self, w: Tensor) -> None:
        self.w = w.double().sort(dim=1).values
        self.prefix = pad(self.w.cumsum(1), (1, 0))
        self.square = self.w.square().sum(1)

    def take(self, rows: Tensor) -> SortedRows:
        """These rows (int64) alone."""
        part = object.__new__(SortedRows)
        part.w, part.prefix, part.square = self.w[rows], self.prefix[rows], self.square[rows]
        return part

    def split(self, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, 2^q) float64 → counts and sums by nearest level, in its order, (rows, 2^q); squared error (rows,)."""
        ordered, codes = levels.sort(dim=1, stable=True)
        inner = torch.searchsorted(self.w, between(ordered), right=True)
        cuts = pad(pad(inner, (1, 0)), (0, 1), value=self.w.shape[1])
        counts, totals = cuts.diff(dim=1).double(), self.prefix.gather(1, cuts).diff(dim=1)
        error = self.square + (counts * ordered.square() - 2.0 * totals * ordered).sum(1)
        empty = torch.zeros_like(levels)
        return empty.scatter(1, codes, counts), empty.scatter(1, codes, totals), error.clamp_min(0.0)
