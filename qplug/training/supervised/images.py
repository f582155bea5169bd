"""Training images: which of them a step sees, and how each is augmented, by nothing but the seed, epoch and index."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qplug.core.distributed import Processes
from qplug.core.errors import InputError
from qplug.core.examples import Examples, LabelTransform
from qplug.data.preparation import Preparation
from qplug.training.supervised.augment import drawn_from, transform
from qplug.training.supervised.config import Training

HELD = 1 << 30
"""Bytes of decoded images up to which all of them are held in memory: in random order, files are slow to read."""

Place = tuple[int, int]
"""Epoch and index."""


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """Inputs and labels by epoch and index.

    Args:
        examples: labelled, classes as integers.
        preparation: how the model's inputs are made.
        settings: batches, augmentation, and how many are held out.
        seed: the recipe's.

    Raises:
        InputError: fewer images than a batch has, or labels that are no classes.
    """

    def __init__(self, examples: Examples, preparation: Preparation, settings: Training, seed: int) -> None:
        self._examples, self._seed = examples, seed
        self.batch, self._parts = settings.batch_size, settings.accumulate
        self.epochs, self._workers = settings.epochs, settings.workers
        self._augmented = transform(preparation, settings.augment)
        self._plain = preparation.transform()
        if isinstance(self._plain, LabelTransform) and not isinstance(examples.label(0), int):
            raise InputError("only classes can be trained, and these examples have answers", where="data.training")
        order = np.random.default_rng([seed, 0]).permutation(len(examples))
        self.held_out = sorted(int(i) for i in order[: settings.hold_out])
        self.trained = np.sort(order[settings.hold_out :])
        if len(self.trained) < self.batch:
            kept = f", {settings.hold_out} of them held out" if settings.hold_out else ""
            what = f"a batch of {self.batch} was asked for, and there are {len(examples)} images{kept}"
            raise InputError(what, where="data.training", fix="lower batch_size, or give more images")

    @property
    def steps(self) -> int:
        """Batches of one epoch; what remains of its permutation is dropped."""
        return len(self.trained) // self.batch

    def __len__(self) -> int:
        return len(self.trained)

    def __getitem__(self, place: Place) -> tuple[Tensor, int]:
        epoch, index = place
        item, label = self._items(index)
        with drawn_from(self._seed, epoch, index):
            return self._augmented(item), label

    def parts(self, first: int, processes: Processes) -> Iterator[tuple[Tensor, Tensor]]:
        """From step ``first`` on, one after the other, the parts of every batch that this process computes.

        A batch is the same whatever the number of parts and processes is. Yields inputs (n, …) and labels (n,) int64.
        """
        loader = DataLoader(
            self,
            batch_sampler=self._places(first, processes),
            num_workers=self._workers,
            multiprocessing_context="fork" if self._workers else None,
            generator=torch.Generator().manual_seed(0),  # or it would draw from the global one
        )
        yield from loader

    def _places(self, first: int, processes: Processes) -> Iterator[list[Place]]:
        for step in range(first, self.epochs * self.steps):
            epoch, number = divmod(step, self.steps)
            order = np.random.default_rng([self._seed, 1, epoch]).permutation(self.trained)
            batch = order[number * self.batch : (number + 1) * self.batch]
            for part in np.array_split(batch, self._parts * processes.count)[processes.index :: processes.count]:
                yield [(epoch, int(index)) for index in part]

    def held_out_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What is not trained on, as it is evaluated."""
        for start in range(0, len(self.held_out), self.batch):
            pairs = [self._items(index) for index in self.held_out[start : start + self.batch]]
            yield torch.stack([self._plain(item) for item, _ in pairs]), torch.tensor([label for _, label in pairs])

    def _items(self, index: int) -> tuple[Any, int]:
        item, label = self._in_memory[index] if self._in_memory else self._examples[index]
        assert isinstance(label, int)
        return item, label

    @cached_property
    def _in_memory(self) -> list[tuple[Any, Any]]:
        """All of them in their order, which is that of the files; none where they would take too much."""
        image = self._examples[0][0]
        bands = len(image.getbands()) * image.width * image.height if hasattr(image, "getbands") else 0
        if (bands or self._examples.size_hint(0)) * len(self._examples) > HELD:
            return []
        return [self._examples[index] for index in range(len(self._examples))]
