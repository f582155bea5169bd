"""Whether an accuracy is better than chance, against scipy's exact test and by hand."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest

from qplug.core.chance import Chance
from qplug.core.task import CLASSIFICATION


def test_expected_accuracy_is_that_of_predictions_in_random_order() -> None:
    balanced = [0, 1, 2, 3] * 5
    assert Chance.of(balanced, balanced).expected == pytest.approx(1 / 4)
    assert Chance.of([3] * 20, balanced).expected == pytest.approx(1 / 4)
    assert Chance.of([1] * 4, [1, 1, 1, 0]).expected == pytest.approx(3 / 4)
    assert Chance.of([7] * 4, [1, 1, 1, 0]).expected == 0.0


def test_p_value_is_that_of_the_exact_test() -> None:
    for right, expected in ((0, 0.01), (3, 0.01), (25, 0.25), (100, 0.5), (0, 0.0)):
        wanted = binomtest(right, 100, expected, alternative="greater").pvalue
        assert Chance(right, 100, expected).p_value == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("right", "examples", "expected", "likely"),
    [
        (0, 250, 0.001, True),  # labels by name order: no image of 1,000 classes is right
        (0, 250, 0.0, True),
        (1, 250, 0.001, True),
        (150, 50_000, 0.001, True),  # significant, and still a broken model
        (184, 250, 0.001, False),
        (4, 16, 0.25, True),
        (15, 16, 0.25, False),
        (2, 2, 0.5, False),  # two images cannot show more
        (1, 1, 1.0, False),
        (90, 100, 0.9, True),  # the majority class, whatever the image
        (99, 100, 1.0, True),
        (3_000, 10_000, 0.1, False),
    ],
)
def test_no_better_than_chance(right: int, examples: int, expected: float, likely: bool) -> None:
    assert Chance(right, examples, expected).is_likely is likely


def test_a_model_that_always_says_the_same_is_at_chance() -> None:
    labels = torch.tensor([0] * 60 + [1] * 40)
    outputs = torch.tensor([[1.0, 0.0]]).repeat(100, 1)
    chance = CLASSIFICATION.chance(outputs, labels)
    assert (chance.right, chance.expected, chance.is_likely) == (60, 0.6, True)
