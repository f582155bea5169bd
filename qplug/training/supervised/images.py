"""Training images: batches and augmentation depend only on the seed, the epoch and the image's index."""

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
from qplug.training.supervised.augment import seeded_generators, transform
from qplug.training.supervised.config import Training

MEMORY_LIMIT = 1 << 30
"""Bytes of decoded images up to which all images stay in memory, because random access to files is slow."""

EpochIndex = tuple[int, int]
"""(epoch, index of the image)."""


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """Inputs and labels by epoch and index.

    Args:
        examples: labelled examples, with integer classes.
        preparation: preparation of the model's inputs.
        settings: batches, augmentation, and the number of held-out images.
        seed: the recipe's seed.

    Raises:
        InputError: there are fewer images than one batch needs, or the labels are no classes.
    """

    def __init__(self, examples: Examples, preparation: Preparation, settings: Training, seed: int) -> None:
        self._examples, self._seed = examples, seed
        self.batch, self._parts = settings.batch_size, settings.accumulate
        self.epochs, self._workers = settings.epochs, settings.workers
        self._augmented = transform(preparation, settings.augment)
        self._plain = preparation.transform()
        if isinstance(self._plain, LabelTransform) and not isinstance(examples.label(0), int):
            raise InputError(
                "training expects examples labelled with classes, and these examples have answers",
                where="data.training",
                fix="name a data set of classes",
            )
        order = np.random.default_rng([seed, 0]).permutation(len(examples))
        self.held_out = sorted(int(i) for i in order[: settings.hold_out])
        self.trained = np.sort(order[settings.hold_out :])
        if len(self.trained) < self.batch:
            held_out = f", {settings.hold_out} of them held out" if settings.hold_out else ""
            message = f"a batch needs {self.batch} images, and there are {len(examples)} images{held_out}"
            raise InputError(message, where="data.training", fix="lower batch_size, or provide more images")

    @property
    def steps(self) -> int:
        """Batches per epoch; the remainder of an epoch's permutation is dropped."""
        return len(self.trained) // self.batch

    def __len__(self) -> int:
        return len(self.trained)

    def __getitem__(self, key: EpochIndex) -> tuple[Tensor, int]:
        epoch, index = key
        item, label = self._item(index)
        with seeded_generators(self._seed, epoch, index):
            return self._augmented(item), label

    def parts(self, first: int, processes: Processes) -> Iterator[tuple[Tensor, Tensor]]:
        """The parts of every batch that this process computes, in order, beginning at step ``first``.

        The images of a batch do not depend on the number of parts or processes. Yields inputs (n, …) and labels (n,)
        int64.
        """
        loader = DataLoader(
            self,
            batch_sampler=self._indices(first, processes),
            num_workers=self._workers,
            multiprocessing_context="fork" if self._workers else None,
            generator=torch.Generator().manual_seed(0),  # without it, DataLoader draws from the global generator
        )
        yield from loader

    def _indices(self, first: int, processes: Processes) -> Iterator[list[EpochIndex]]:
        for step in range(first, self.epochs * self.steps):
            epoch, number = divmod(step, self.steps)
            order = np.random.default_rng([self._seed, 1, epoch]).permutation(self.trained)
            batch = order[number * self.batch : (number + 1) * self.batch]
            for part in np.array_split(batch, self._parts * processes.count)[processes.index :: processes.count]:
                yield [(epoch, int(index)) for index in part]

    def held_out_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the held-out images, prepared as for evaluation."""
        for start in range(0, len(self.held_out), self.batch):
            pairs = [self._item(index) for index in self.held_out[start : start + self.batch]]
            yield torch.stack([self._plain(item) for item, _ in pairs]), torch.tensor([label for _, label in pairs])

    def _item(self, index: int) -> tuple[Any, int]:
        item, label = self._in_memory[index] if self._in_memory else self._examples[index]
        assert isinstance(label, int)
        return item, label

    @cached_property
    def _in_memory(self) -> list[tuple[Any, Any]]:
        """All items in the order of the files; empty if they exceed ``MEMORY_LIMIT``."""
        image = self._examples[0][0]
        bands = len(image.getbands()) * image.width * image.height if hasattr(image, "getbands") else 0
        if (bands or self._examples.size_hint(0)) * len(self._examples) > MEMORY_LIMIT:
            return []
        return [self._examples[index] for index in range(len(self._examples))]
