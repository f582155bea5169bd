"""``Task``: everything that depends on what a model's outputs mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from qplug.core.seeding import seeded


class Task(ABC):
    """The meaning of a model's outputs. Outputs have the examples of a batch along their first axis."""

    name: ClassVar[str]
    losses: ClassVar[tuple[str, ...]]
    """Names of the losses that ``calibration.loss`` may choose."""

    @abstractmethod
    def calibration_loss(self, name: str, outputs: Tensor) -> Tensor:
        """(): the loss of ``outputs``, summed over examples; its squared gradient weighs errors of activations."""

    @abstractmethod
    def divergence(self, outputs: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
        """(): how far ``outputs`` are from ``target``, summed over examples, differentiable; 0 where they are equal."""

    @abstractmethod
    def training_loss(self, outputs: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """(): the loss against labels, summed over examples; raises ``InputError`` where there is none."""

    @abstractmethod
    def check_labels(self, labels: Tensor, outputs: Tensor, where: str) -> None:
        """Raises ``InputError`` for labels, on the CPU, that these outputs cannot have; ``where`` names the data."""

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """(N,) int64: one number for each prediction, equal for equal predictions."""

    @abstractmethod
    def truth(self, labels: Tensor, outputs: Tensor) -> Tensor:
        """(N,) int64: the labels, as ``predictions`` numbers them; −1 where no prediction can be right."""

    @abstractmethod
    def energies(self, reference: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """y² and (y − ŷ)² of each output, float64, in its shape; 0 where an output means nothing, as at padding."""

    @abstractmethod
    def metrics(self, float_: Tensor, quantized: Tensor, labels: Tensor) -> dict[str, float]:
        """The metrics of both models over all examples; shares are in 0 … 1."""

    @abstractmethod
    def by_example(self, float_: Tensor, quantized: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """(N,) tensors of which comparisons of two runs are made."""

    def accuracy(self, outputs: Tensor, labels: Tensor) -> float:
        """The share of examples whose prediction is the label, in 0 … 1."""
        return float((self.predictions(outputs) == self.truth(labels, outputs)).double().mean())

    def agreement(self, one: Tensor, other: Tensor) -> int:
        """How many examples have the same prediction in both."""
        return int((self.predictions(one) == self.predictions(other)).sum())

    def relative_change(self, before: Tensor, after: Tensor) -> float:
        """‖after − before‖ / ‖before‖ over every output that means something."""
        signal, noise = self.energies(before, after)
        return float((noise.sum() / signal.sum().clamp_min(1e-24)).sqrt())

    def sum_of_losses(self, name: str, outputs: Tensor, first: int, seed: int) -> Tensor:
        """(): ``calibration_loss`` of a batch whose first example is number ``first`` of the calibration data.

        Each example draws by a seed of its own, so the batch size does not change the draws.
        """
        total = outputs.new_zeros(())
        for index, row in enumerate(torch.split(outputs, 1), start=first):
            with seeded(seed, index):
                total = total + self.calibration_loss(name, row)
        return total
