"""``Task``: the base class of tasks, which interpret a model's outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from qplug.core.chance import Chance
from qplug.core.examples import Label
from qplug.core.seeding import seeded


class Task(ABC):
    """Interpretation of a model's outputs, whose first axis is the batch."""

    name: ClassVar[str]
    losses: ClassVar[tuple[str, ...]]
    """Names of the losses that ``calibration.loss`` may choose."""
    outputs: ClassVar[str] = "(B, …)"
    """Shape of the outputs, for messages."""
    causes: ClassVar[str] = "the labels, the preparation of inputs, or the checkpoint"
    """What is likely to be wrong where a float model is no better than chance."""

    def accepts(self, outputs: Tensor) -> bool:
        """Whether ``outputs`` have the number of axes of this task; any number by default."""
        return True

    @abstractmethod
    def calibration_loss(self, name: str, outputs: Tensor) -> Tensor:
        """(): the loss of ``outputs``, summed over examples; its squared gradient weights errors of activations."""

    @abstractmethod
    def divergence(self, outputs: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
        """(): differentiable distance of ``outputs`` from ``target``, summed over examples; 0 if they are equal."""

    @abstractmethod
    def training_loss(self, outputs: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """(): the loss against labels, summed over examples; raises ``InputError`` if the task has none."""

    @abstractmethod
    def check_labels(self, labels: Tensor, outputs: Tensor, where: str) -> None:
        """Raise ``InputError`` for labels, on the CPU, that are invalid for ``outputs``; ``where`` names the data."""

    def mismatch(self, label: Label, shape: Sequence[int]) -> str:
        """Why a label, before its example is prepared, is of another kind than outputs of ``shape``; empty if not.

        ``shape`` is that of the outputs of one example.
        """
        return ""

    def classes(self, shape: Sequence[int]) -> int | None:
        """The number of classes whose scores outputs of ``shape`` are; ``None`` if labels are not classes."""
        return None

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """(N,) int64: a number for each prediction; equal predictions have equal numbers."""

    @abstractmethod
    def truth(self, labels: Tensor, outputs: Tensor) -> Tensor:
        """(N,) int64: the labels, numbered as in ``predictions``; −1 if no prediction can be correct."""

    @abstractmethod
    def energies(self, reference: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """y² and (y − ŷ)² of each output element, float64, in the shape of the outputs; 0 at padding."""

    @abstractmethod
    def metrics(self, float_: Tensor, quantized: Tensor, labels: Tensor) -> dict[str, float]:
        """The metrics of both models over all examples; fractions are in 0 … 1."""

    @abstractmethod
    def by_example(self, float_: Tensor, quantized: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """(N,) tensors of each example's results, which comparisons of two runs read."""

    def accuracy(self, outputs: Tensor, labels: Tensor) -> float:
        """The fraction of examples whose prediction equals the label, in 0 … 1."""
        return float((self.predictions(outputs) == self.truth(labels, outputs)).double().mean())

    def chance(self, outputs: Tensor, labels: Tensor) -> Chance:
        """The float model's accuracy, and what it would be if its predictions had nothing to do with the labels."""
        predictions, truth = self.predictions(outputs), self.truth(labels, outputs)
        return Chance.of(predictions.tolist(), truth.tolist())

    def agreement(self, first: Tensor, second: Tensor) -> int:
        """The number of examples with equal predictions in both outputs."""
        return int((self.predictions(first) == self.predictions(second)).sum())

    def relative_change(self, before: Tensor, after: Tensor) -> float:
        """‖after − before‖ / ‖before‖ over all output elements except padding."""
        signal, noise = self.energies(before, after)
        return float((noise.sum() / signal.sum().clamp_min(1e-24)).sqrt())

    def sum_of_losses(self, name: str, outputs: Tensor, first: int, seed: int) -> Tensor:
        """(): ``calibration_loss`` of a batch whose first example has index ``first`` in the calibration data.

        Each example has its own seed, so random draws do not depend on the batch size.
        """
        total = outputs.new_zeros(())
        for index, row in enumerate(torch.split(outputs, 1), start=first):
            with seeded(seed, index):
                total = total + self.calibration_loss(name, row)
        return total
