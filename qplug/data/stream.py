"""``Stream``: batches of prepared examples that can be iterated several times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qplug.core.examples import Examples
from qplug.data.loading import prepared

if TYPE_CHECKING:
    from qplug.data.preparation import Preparation

LARGEST_IN_MEMORY = 2**30
"""Largest size, in bytes, of prepared examples that a stream holds in memory."""


class Stream:
    """Batches of prepared examples, for any number of passes; ``len`` is the number of batches. No label is read.

    The examples are decoded once and held in memory if they take at most ``LARGEST_IN_MEMORY`` bytes. Larger data sets
    are decoded at every pass.
    """

    def __init__(
        self, images: Examples, preprocessing: Preparation, batch_size: int, device: torch.device | str = "cpu"
    ) -> None:
        self.examples, self.preprocessing, self.batch_size, self.device = images, preprocessing, batch_size, device
        self._transform = preprocessing.transform()
        self._fits = len(images) * preprocessing.example().nbytes <= LARGEST_IN_MEMORY
        self._batches: list[Tensor] | None = None

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        if self._fits and self._batches is None:
            self._batches = list(self._decoded())
        return self._decoded() if self._batches is None else iter(self._batches)

    def once(self) -> Iterator[Tensor]:
        """One pass that does not hold the examples in memory."""
        return self._decoded()

    def first(self, count: int) -> Tensor:
        """The first ``count`` examples, or all if there are fewer, as one batch."""
        return next(prepared(self.examples, self._transform, count, self.device))

    def _decoded(self) -> Iterator[Tensor]:
        yield from prepared(self.examples, self._transform, self.batch_size, self.device)
