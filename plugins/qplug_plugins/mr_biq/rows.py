"""Sorted rows, with which a round of alternation costs O(2^q·log n) per row instead of O(n)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def between(ordered: Tensor) -> Tensor:
    """(rows, L) ascending levels → (rows, L − 1): the largest value rounded to each level, below the next level."""
    low, high = ordered[:, :-1], ordered[:, 1:]
    middle = (low + high) * 0.5
    return torch.where(middle >= high, low, middle)


def sums_by_code(w: Tensor, codes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(rows, n) float and codes below ``count`` → (rows, count) the number of values of each code, and their sum."""
    empty = w.new_zeros(len(w), count)
    return empty.scatter_add(1, codes, torch.ones_like(w)), empty.scatter_add(1, codes, w)


class SortedRows:
    """Rows as sorted values with prefix sums: levels divide a row into runs whose sums are differences of these.

    Args:
        w: (rows, n) float.
    """

    def __init__(self, w: Tensor) -> None:
        self.w = w.double().sort(dim=1).values
        self.prefix = pad(self.w.cumsum(1), (1, 0))
        self.square = self.w.square().sum(1)

    def take(self, rows: Tensor) -> SortedRows:
        """A subset of the rows, by index (int64) or by mask (bool)."""
        part = object.__new__(SortedRows)
        part.w, part.prefix, part.square = self.w[rows], self.prefix[rows], self.square[rows]
        return part

    def split(self, ordered: Tensor, codes: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Counts and sums of the values by their nearest level, (rows, 2^q) each, and the squared error, (rows,).

        Args:
            ordered: (rows, 2^q) float64, ascending levels.
            codes: (rows, 2^q) int64, column of the output for each level; its index by default.
        """
        inner = torch.searchsorted(self.w, between(ordered), right=True)
        cuts = pad(pad(inner, (1, 0)), (0, 1), value=self.w.shape[1])
        counts, totals = cuts.diff(dim=1).double(), self.prefix.gather(1, cuts).diff(dim=1)
        error = (self.square + ((counts * ordered - 2.0 * totals) * ordered).sum(1)).clamp_min(0.0)
        if codes is None:
            return counts, totals, error
        empty = torch.empty_like(ordered)
        return empty.scatter(1, codes, counts), empty.scatter(1, codes, totals), error

    def grid_error(self, step: Tensor, middle: Tensor, bits: int) -> Tensor:
        """(rows,) squared error of rounding to middle + step·(odd integers of q bits); both are (rows, 1) float64.

        For rows with few values, rounding each value is faster than dividing the row at every level.
        """
        top = (1 << bits) - 1
        if self.w.shape[1] > 4 * top:
            odd = torch.arange(-top, top + 1, 2, dtype=torch.float64, device=step.device)
            return self.split(middle + step * odd)[2]
        width = 2.0 * step
        places = ((self.w - middle) / width.clamp_min(torch.finfo(torch.float64).tiny)).add_(0.5 * top).round_()
        return places.clamp_(0.0, top).sub_(0.5 * top).mul_(width).add_(middle).sub_(self.w).square_().sum(1)
