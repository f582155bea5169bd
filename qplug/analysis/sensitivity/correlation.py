"""Whether one measure of sensitivity predicts another: rank correlations over sites."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

FEWEST = 3
"""Two sites correlate perfectly, whatever they are."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ between two measures.

    Attributes:
        one, other: names of the measures.
        rho: −1 … 1, mean ranks for ties; NaN for fewer than three sites, or where a measure is the same for all.
        p: two-sided, of ρ = 0, not corrected for the number of pairs; NaN with ``rho``.
        n: sites.
    """

    one: str
    other: str
    rho: float
    p: float
    n: int


def correlations(columns: Mapping[str, Sequence[float]]) -> list[Correlation]:
    """Every pair of measures, in the order given (Spearman 1904; ``scipy.stats.spearmanr``).

    Args:
        columns: measure → its value at every site, all equally long; infinite values rank at the end.
    """
    return [_spearman(one, columns[one], other, columns[other]) for one, other in combinations(columns, 2)]


def _spearman(one: str, x: Sequence[float], other: str, y: Sequence[float]) -> Correlation:
    if len(x) < FEWEST or len(set(x)) == 1 or len(set(y)) == 1:
        return Correlation(one, other, math.nan, math.nan, len(x))
    from scipy.stats import spearmanr

    rho, p = spearmanr(x, y)
    return Correlation(one, other, float(rho), float(p), len(x))
