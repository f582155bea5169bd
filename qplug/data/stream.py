"""Prepared examples that can be shown any number of times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qplug.core.examples import Examples
from qplug.data.loading import batches

if TYPE_CHECKING:
    from qplug.data.preparation import Preparation

KEPT = 2**30
"""Bytes of prepared examples that are kept; more are decoded anew at every pass."""


class Stream:
    """Prepared examples that can be iterated any number of times, a batch at a time; ``len`` counts the batches.

    They are decoded once, at the first pass, if all of them take at most ``KEPT`` bytes, and at every pass otherwise.
    """

    def __init__(
        self, images: Examples, preprocessing: Preparation, batch_size: int, device: torch.device | str = "cpu"
    ) -> None:
        self.examples, self.preprocessing, self.batch_size, self.device = images, preprocessing, batch_size, device
        self._transform = preprocessing.transform()
        self._fits = len(images) * preprocessing.example().nbytes <= KEPT
        self._kept: list[Tensor] | None = None

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        if self._fits and self._kept is None:
            self._kept = list(self._decoded())
        return self._decoded() if self._kept is None else iter(self._kept)

    def once(self) -> Iterator[Tensor]:
        """One pass that keeps nothing."""
        return self._decoded()

    def first(self, count: int) -> Tensor:
        """The first ``count`` examples, or all where there are fewer, as one batch."""
        inputs, _ = next(batches(self.examples, self._transform, count, self.device))
        return inputs

    def _decoded(self) -> Iterator[Tensor]:
        for inputs, _ in batches(self.examples, self._transform, self.batch_size, self.device):
            yield inputs
