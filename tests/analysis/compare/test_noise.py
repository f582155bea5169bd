"""Significance: the exact test against scipy and by enumeration, the interval over seeds, and the letters."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import binomtest, ttest_1samp

from qplug.analysis.compare.noise import SeedDifference, difference, exact_p, letters, permutation_p, seed_interval


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 20))
def test_with_one_seed_it_is_mcnemars_exact_test(ours, theirs, alike):
    delta = np.array([[1] * ours + [-1] * theirs + [0] * alike])
    want = binomtest(ours, ours + theirs).pvalue if ours + theirs else 1.0
    assert exact_p(delta) == pytest.approx(want)


@given(st.lists(st.tuples(*[st.integers(-1, 1)] * 3), min_size=1, max_size=9))
def test_with_several_seeds_an_image_is_one_coin(images):
    delta = np.array(images).T
    sums = delta.sum(0)
    outcomes = [abs(np.dot(signs, sums)) for signs in itertools.product((-1, 1), repeat=len(sums))]
    assert exact_p(delta) == pytest.approx(np.mean([t >= abs(sums.sum()) for t in outcomes]))


def test_seeds_of_the_same_images_are_not_more_evidence():
    one = np.array([[1] * 6 + [-1] * 2 + [0] * 40])
    assert exact_p(np.repeat(one, 3, axis=0)) == pytest.approx(exact_p(one))


def test_the_interval_over_seeds_is_scipys():
    means = np.array([0.01, 0.03, 0.025])
    assert seed_interval(means) == pytest.approx(ttest_1samp(means, 0.0).confidence_interval(0.95))
    assert seed_interval(np.array([0.02, 0.02])) == pytest.approx((0.02, 0.02))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_no_more_than_one_in_twenty_differences_of_nothing_is_called_one(seeds):
    draws = np.random.default_rng(seeds).normal(0.0, 0.02, (2000, seeds))
    missed = np.mean([low > 0.0 or high < 0.0 for low, high in map(seed_interval, draws)])
    assert missed == pytest.approx(0.05, abs=0.015)


def test_many_seeds_narrow_the_interval():
    means = np.random.default_rng(0).normal(0.01, 0.02, 40)
    low, high = seed_interval(means)
    assert low < means.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 0.02 / np.sqrt(40), rel=0.3)


def test_a_difference_needs_images_and_seeds():
    right = np.zeros((3, 100), dtype=bool)
    better, worse = right.copy(), right.copy()
    better[:, :30] = worse[:, :10] = True
    found = difference(better, worse)
    assert found.mean == pytest.approx(0.2)
    assert not found.is_noise
    assert not difference(worse, better).is_noise
    few = right.copy()
    few[:, :3] = True
    assert difference(few, right).is_noise  # three images
    worse[2, :40] = True
    assert difference(better, worse).is_noise  # one seed says the opposite
    assert difference(better, better).is_noise
    assert SeedDifference(0.1, 0.01, None).is_noise is False


def test_scores_are_told_apart_by_permuted_signs():
    from scipy.stats import permutation_test

    delta = np.random.default_rng(3).normal(0.05, 0.2, 60)
    expected = permutation_test(
        (delta,), np.mean, permutation_type="samples", n_resamples=20_000, random_state=np.random.default_rng(0)
    ).pvalue
    assert permutation_p(delta[None]) == pytest.approx(expected, abs=0.01)


def test_no_more_than_one_in_twenty_equal_scores_differ():
    draws = np.random.default_rng(1).normal(0.0, 0.2, (300, 1, 25))
    assert np.mean([permutation_p(delta) < 0.05 for delta in draws]) == pytest.approx(0.05, abs=0.03)


def test_images_without_a_score_do_not_count():
    ours, theirs = np.array([[0.5, np.nan, 0.7]]), np.array([[0.25, np.nan, 0.2]])
    assert difference(ours, theirs).mean == pytest.approx(0.375)
    nothing = np.full((1, 3), np.nan)
    assert difference(nothing, nothing).is_noise


def test_rows_share_a_letter_if_they_are_the_same():
    ties = {(0, 1), (1, 2), (3, 4)}
    assert letters(6, lambda i, j: (i, j) in ties) == ["a", "ab", "b", "c", "c", ""]


def test_many_groups_keep_letters_of_their_own():
    found = letters(60, lambda i, j: i // 2 == j // 2)
    assert found[:2] == ["a", "a"]
    assert found[50:54] == ["z", "z", "(27)", "(27)"]
    assert len(set(found)) == 30


@given(st.integers(1, 7), st.data())
def test_letters_are_shared_exactly_by_equal_rows(count, data):
    ties = {pair: data.draw(st.booleans()) for pair in itertools.combinations(range(count), 2)}
    found = letters(count, lambda i, j: ties[i, j])
    for (i, j), tied in ties.items():
        assert bool(set(found[i]) & set(found[j])) == tied
