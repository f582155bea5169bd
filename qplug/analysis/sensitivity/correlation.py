"""Rank correlations over sites between measures of sensitivity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

FEWEST_SITES = 3
"""Two sites always correlate perfectly."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ between two measures.

    Attributes:
        one, other: names of the measures.
        rho: −1 … 1, with mean ranks for equal values; NaN for fewer than three sites or for a constant measure.
        p: two-sided p-value of ρ = 0, not corrected for the number of pairs; NaN if ``rho`` is.
        n: number of sites.
    """

    one: str
    other: str
    rho: float
    p: float
    n: int


def correlations(columns: Mapping[str, Sequence[float]]) -> list[Correlation]:
    """Correlation of every pair of measures, in their order (Spearman 1904; ``scipy.stats.spearmanr``).

    Args:
        columns: measure → its values, one for each site; infinite values rank last.
    """
    return [_spearman(one, columns[one], other, columns[other]) for one, other in combinations(columns, 2)]


def _spearman(one: str, x: Sequence[float], other: str, y: Sequence[float]) -> Correlation:
    if len(x) < FEWEST_SITES or len(set(x)) == 1 or len(set(y)) == 1:
        return Correlation(one, other, math.nan, math.nan, len(x))
    from scipy.stats import spearmanr

    rho, p = spearmanr(x, y)
    return Correlation(one, other, float(rho), float(p), len(x))
