"""Significance of the difference between two recipes: an exact test over images, and Student's t over seeds."""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Scores = NDArray[np.float64]

SIGNIFICANCE_LEVEL = 0.05
"""Level of the two-sided exact test and of the interval; not corrected for the number of pairs."""
PERMUTATIONS = 10_000
"""Random signs of the test of scores; its p-values are multiples of 1/10,001."""


@dataclass(frozen=True)
class SeedDifference:
    """The mean score by example of one recipe minus that of another, on the same images.

    Attributes:
        mean: difference of the means over images, mean over seeds; of top-1, the difference itself.
        p: p-value of the test over images.
        interval: 95 % interval of Student's t over seeds; ``None`` for one seed.
    """

    mean: float
    p: float
    interval: tuple[float, float] | None

    @property
    def is_noise(self) -> bool:
        """Whether chance in the images or in the seeds explains the difference."""
        by_seed = self.interval is not None and self.interval[0] <= 0.0 <= self.interval[1]
        return self.p >= SIGNIFICANCE_LEVEL or by_seed


def difference(ours: Scores, theirs: Scores) -> SeedDifference:
    """Difference between two recipes.

    Predictions that are right or wrong are told apart by ``exact_p``, other scores by ``permutation_p``. An average
    precision or a mean IoU is no mean over images: its test is that of the scores by image, which is less than a test
    of the figure itself.

    Args:
        ours, theirs: (seeds, images), the score of each image in 0 … 1: 0 or 1 where a prediction is right or wrong,
            NaN for an image without a score; the same seeds and images.
    """
    import numpy as np

    delta = ours.astype(np.float64) - theirs.astype(np.float64)
    delta = delta[:, ~np.isnan(delta).any(0)]
    if not delta.shape[1]:
        return SeedDifference(0.0, 1.0, None)
    interval = seed_interval(delta.mean(1)) if len(delta) > 1 else None
    whole = not (delta % 1).any()
    p = exact_p(delta.astype(np.int64)) if whole else permutation_p(delta)
    return SeedDifference(float(delta.mean()), p, interval)


def exact_p(delta: NDArray[np.int64]) -> float:
    """Two-sided p-value of no difference: P(|T| ≥ |Σ delta|) with T = Σ over images of ±(sum over seeds), random signs.

    With one seed this is McNemar's exact test: each image on which the two disagree is a fair coin. Several seeds of
    one image are not independent, so each image has one sign for all seeds.

    Args:
        delta: (seeds, images) of −1, 0 or 1.
    """
    import numpy as np
    from scipy.stats import binom

    by_image = delta.sum(0)
    density = np.ones(1)  # of the sum of the images whose sign is positive
    for size, count in enumerate(np.bincount(np.abs(by_image))):
        if size and count:
            weights = np.zeros(size * count + 1)
            weights[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
            density = np.convolve(density, weights)
    total = len(density) - 1
    extreme = np.abs(2 * np.arange(total + 1) - total) >= abs(int(by_image.sum()))
    return float(min(1.0, density[extreme].sum()))


def permutation_p(delta: NDArray[np.float64]) -> float:
    """Two-sided p-value of no difference, as ``exact_p``, for scores that are no whole numbers.

    The distribution of T is drawn: ``PERMUTATIONS`` times random signs, from a seed of its own. The observed sum counts
    among them, so that p is never 0 (Phipson and Smyth 2010).

    Args:
        delta: (seeds, images).
    """
    import numpy as np

    by_image = delta.sum(0)
    draw, extreme, least = np.random.default_rng(0), 0, abs(by_image.sum()) - 1e-12
    for _ in range(0, PERMUTATIONS, 1000):  # in parts, so that many images need little memory
        signs = draw.integers(0, 2, (1000, len(by_image)), dtype=np.int8) * 2.0 - 1.0
        extreme += int((np.abs(signs @ by_image) >= least).sum())
    return (extreme + 1) / (PERMUTATIONS + 1)


def seed_interval(means: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean by Student's t.

    A bootstrap is no alternative: with two or three seeds its interval reaches from the smallest to the largest value,
    which covers the mean in only 50 and 75 of 100 cases.

    Args:
        means: (seeds,) differences, one for each of two or more seeds.
    """
    from scipy.stats import t

    count = len(means)
    half_width = t.ppf(1.0 - SIGNIFICANCE_LEVEL / 2, count - 1) * means.std(ddof=1) / count**0.5
    return float(means.mean() - half_width), float(means.mean() + half_width)


def letters(count: int, same: Callable[[int, int], bool]) -> list[str]:
    """Letters for ``count`` rows: two rows share a letter exactly if they are ``same``. Other rows have no letter.

    Piepho's compact letter display: one letter for each maximal set of rows that are all pairwise the same.
    """
    import networkx

    graph = networkx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from((i, j) for i, j in itertools.combinations(range(count), 2) if same(i, j))
    groups = sorted(sorted(clique) for clique in networkx.find_cliques(graph) if len(clique) > 1)
    return ["".join(letter(k) for k, group in enumerate(groups) if row in group) for row in range(count)]


def letter(index: int) -> str:
    """``a`` … ``z``, then numbers in brackets, so that letters can be written side by side."""
    return string.ascii_lowercase[index] if index < len(string.ascii_lowercase) else f"({index + 1})"
