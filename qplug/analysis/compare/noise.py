"""Whether two recipes differ by more than noise: an exact test over images, and Student's t over seeds."""

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

LEVEL = 0.05
"""Of the exact test, two-sided, and of the interval; not corrected for the number of pairs."""


@dataclass(frozen=True)
class Difference:
    """Top-1 of one recipe minus that of another, on the same images.

    Attributes:
        top1: share of images, mean over seeds.
        p: of the exact test over images.
        interval: 95 % of Student's t over seeds; ``None`` where there is one seed, so that only images are known.
    """

    top1: float
    p: float
    interval: tuple[float, float] | None

    @property
    def is_noise(self) -> bool:
        """Whether chance explains it: in the images, or in the seeds."""
        by_seed = self.interval is not None and self.interval[0] <= 0.0 <= self.interval[1]
        return self.p >= LEVEL or by_seed


def difference(ours: Correct, theirs: Correct) -> Difference:
    """Compare which images two recipes got right: (seeds, images) bool each, images and seeds in the same order."""
    import numpy as np

    delta = ours.astype(np.int64) - theirs.astype(np.int64)
    return Difference(float(delta.mean()), exact_p(delta), seed_interval(delta.mean(1)) if len(delta) > 1 else None)


def exact_p(delta: NDArray[np.int64]) -> float:
    """Two-sided p that recipes are alike: P(|T| ≥ |Σ delta|), T = Σ over images of ±(the seeds' sum), signs fair coins.

    With one seed this is McNemar's exact test: each image on which the two disagree is a fair coin. Several seeds of
    one image are not independent, so an image keeps one coin for all of them. ``delta``: (seeds, images) of −1, 0, 1.
    """
    import numpy as np
    from scipy.stats import binom

    by_image = delta.sum(0)
    density = np.ones(1)  # of what the coins that fall to our side are worth together
    for size, count in enumerate(np.bincount(np.abs(by_image))):
        if size and count:
            worth = np.zeros(size * count + 1)
            worth[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
            density = np.convolve(density, worth)
    total = len(density) - 1
    far = np.abs(2 * np.arange(total + 1) - total) >= abs(int(by_image.sum()))
    return float(min(1.0, density[far].sum()))


def seed_interval(means: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean over two seeds or more, (seeds,) differences of the same seed, by Student's t.

    A bootstrap has no more to draw from than the seeds: of two or three its 95 % are from the least to the largest,
    which hold the mean in 50 and 75 of 100 cases.
    """
    from scipy.stats import t

    count = len(means)
    far = t.ppf(1.0 - LEVEL / 2, count - 1) * means.std(ddof=1) / count**0.5
    return float(means.mean() - far), float(means.mean() + far)


def letters(count: int, tied: Callable[[int, int], bool]) -> list[str]:
    """Letters for ``count`` rows, such that two rows share one exactly where they are tied; a row alone has none.

    Piepho's compact letter display: one letter for each largest set of rows that are all tied with each other.
    """
    import networkx

    graph = networkx.Graph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from((i, j) for i, j in itertools.combinations(range(count), 2) if tied(i, j))
    groups = sorted(sorted(clique) for clique in networkx.find_cliques(graph) if len(clique) > 1)
    return ["".join(letter(k) for k, group in enumerate(groups) if row in group) for row in range(count)]


def letter(index: int) -> str:
    """``a`` … ``z``, then numbers in brackets, so that letters can be written side by side."""
    return string.ascii_lowercase[index] if index < len(string.ascii_lowercase) else f"({index + 1})"
