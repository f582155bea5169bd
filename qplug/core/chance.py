"""Whether a model's accuracy is better than chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.05
"""Level of the test."""
LEAST = 0.05
"""Smallest part of the way from chance to 100 % that counts as better than chance."""


@dataclass(frozen=True)
class Chance:
    """An accuracy beside that of predictions that have nothing to do with the labels.

    Attributes:
        right: number of examples whose prediction is the label.
        examples: number of examples.
        expected: the accuracy by chance, in 0 … 1: Σ over classes of (share of predictions) × (share of labels). It is
            1/classes for balanced classes, and the share of a class for a model that always predicts this class.
    """

    right: int
    examples: int
    expected: float

    @classmethod
    def of(cls, predictions: Sequence[int], labels: Sequence[int]) -> Chance:
        """The accuracy of ``predictions``, and its expected value for a random order of ``labels``."""
        count, predicted, true = len(labels), Counter(predictions), Counter(labels)
        expected = sum(predicted[value] * true[value] for value in true) / count**2
        return cls(sum(a == b for a, b in zip(predictions, labels, strict=True)), count, expected)

    @property
    def p_value(self) -> float:
        """The probability of at least so many right answers by chance: a one-sided exact binomial test."""
        from scipy.special import bdtrc  # scipy.stats takes a second to import

        return float(bdtrc(self.right - 1, self.examples, self.expected)) if self.right else 1.0

    @property
    def is_likely(self) -> bool:
        """Whether the accuracy is no better than chance, at ``LEVEL``, or better by less than ``LEAST``.

        The latter finds a broken model on many images, where 0.3 % of 1,000 classes is significant. An accuracy of
        100 % is never likely: a few images cannot show more.
        """
        if self.right == self.examples:
            return False
        above = (self.right / self.examples - self.expected) / (1 - self.expected) if self.expected < 1 else 0.0
        return above < LEAST or self.p_value > LEVEL
