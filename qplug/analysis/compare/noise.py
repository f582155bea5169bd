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

    Correct = NDArray[np.bool_]

SIGNIFICANCE_LEVEL = 0.05
"""Level of the two-sided exact test and of the interval; not corrected for the number of pairs."""


@dataclass(frozen=True)
class SeedDifference:
    """Top-1 of one recipe minus that of another, on the same images.

    Attributes:
        top1: difference as a share of images, mean over seeds.
        p: p-value of the exact test over images.
        interval: 95 % interval of Student's t over seeds; ``None`` for one seed.
    """

    top1: float
    p: float
    interval: tuple[float, float] | None

    @property
    def is_noise(self) -> bool:
        """Whether chance in the images or in the seeds explains the difference."""
        by_seed = self.interval is not None and self.interval[0] <= 0.0 <= self.interval[1]
        return self.p >= SIGNIFICANCE_LEVEL or by_seed


def difference(ours: Correct, theirs: Correct) -> SeedDifference:
    """Difference between two recipes.

    Args:
        ours, theirs: (seeds, images) bool, whether an image was classified correctly; the same seeds and images.
    """
    import numpy as np

    delta = ours.astype(np.int64) - theirs.astype(np.int64)
    interval = seed_interval(delta.mean(1)) if len(delta) > 1 else None
    return SeedDifference(float(delta.mean()), exact_p(delta), interval)


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
