"""Spearman's correlations, by hand and where there is nothing to correlate."""

from __future__ import annotations

import math

import pytest
from scipy.stats import spearmanr

from qplug.analysis.sensitivity.correlation import correlations


def one(x, y):
    (found,) = correlations({"x": x, "y": y})
    return found


@pytest.mark.parametrize(
    ("x", "y", "rho"),
    [
        ([1, 2, 3, 4, 5], [10, 20, 40, 80, 160], 1.0),
        ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], -1.0),
        # ranks 1, 2½, 2½, 4 and 1, 3, 2, 4: covariance 4½, variances 4½ and 5
        ([1, 2, 2, 4], [1, 3, 2, 4], 4.5 / math.sqrt(4.5 * 5)),
        # without ties, 1 − 6Σd²/n(n² − 1), Σd² = 1 + 1 + 4 + 4 + 0
        ([1, 2, 3, 4, 5], [2, 1, 5, 3, 5.5], None),
        ([1.0, 2.0, 3.0, math.inf], [4.0, 3.0, 2.0, 1.0], -1.0),
    ],
)
def test_known_values(x, y, rho):
    found, expected = one(x, y), spearmanr(x, y)
    assert found.rho == pytest.approx(expected.statistic if rho is None else rho, abs=1e-12)
    assert found.p == pytest.approx(expected.pvalue, abs=1e-12)
    assert found.n == len(x)


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2, 3], [0, 0, 0]), ([], [])])
def test_nothing_to_correlate_is_nan_and_no_warning(x, y):
    found = one(x, y)
    assert math.isnan(found.rho)
    assert math.isnan(found.p)
    assert found.n == len(x)


def test_every_pair_once_in_order():
    found = correlations({"a": [1, 2, 3], "b": [3, 1, 2], "c": [3, 2, 1]})
    assert [(c.one, c.other) for c in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [round(c.rho, 6) for c in found] == [-0.5, -1.0, 0.5]
