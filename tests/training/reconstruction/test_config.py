"""Learning rates that suit the number of iterations."""

import pytest

from qplug import Rate


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [(20_000, 1e-3), (2_000, 1e-3 * 10**1.25), (500, 1e-3 * 40**1.25), (50, 0.2), (100_000, 1e-3)],
)
def test_rates_grow_with_fewer_iterations_than_in_the_papers(iterations, expected):
    assert Rate.suited(None, 1e-3, iterations).start == pytest.approx(expected)


def test_an_explicit_rate_is_unchanged():
    assert Rate.suited(0.5, 1e-3, 10, cosine=True) == Rate(0.5, cosine=True)
