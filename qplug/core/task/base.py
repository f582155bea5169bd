"""``Task``: the base class of tasks, which interpret a model's outputs and the labels of examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from qplug.core.chance import Chance
from qplug.core.errors import InputError
from qplug.core.examples import Annotation, Label, Labels
from qplug.core.seeding import seeded

LEAST = 0.01
"""Smallest score of a float model that does not look broken, for tasks without a chance level."""


class Task(ABC):
    """Interpretation of a model's outputs, one tensor whose first axis is the batch, and of the labels of examples.

    A model that takes or returns something else than one tensor gets hooks for that where it is loaded, so that every
    stage of a run stays the same. Examples become inputs by the model's ``Preparation``, and their labels by its
    ``LabelTransform``. A task may hold options; two with equal ``repr`` are the same task.
    """

    name: ClassVar[str]
    losses: ClassVar[tuple[str, ...]]
    """Names of the losses that ``calibration.loss`` may choose."""
    score: ClassVar[str] = "top1"
    """The metric that comparisons show, in 0 … 1, more is better: ``float.<score>`` and ``quantized.<score>``."""
    score_title: ClassVar[str] = "top-1"
    """The score in the words of tables."""
    outputs: ClassVar[str] = "(B, …)"
    """Shape of the outputs, for messages."""
    named: ClassVar[tuple[str, ...]] = ("logits", "out")
    """Entries that hold the outputs of a model with several, the preferred one first: those of transformers, and of
    torchvision's segmentation."""
    missing: ClassVar[Label | None] = None
    """The label of an example that has none; ``None`` if evaluation needs labels."""
    whole_image: ClassVar[bool] = False
    """Whether the preparation of images must keep the whole image, so that outputs can be resized to it."""
    label_kind: ClassVar[str] = "classes"
    """What a label is, for messages."""
    label_fix: ClassVar[str] = "give the labels that the model was trained for"
    """What to do where a label does not suit the model."""
    causes: ClassVar[str] = "the labels, the preparation of inputs, or the checkpoint"
    """What is likely to be wrong where a float model is no better than chance."""

    def accepts(self, outputs: Tensor) -> bool:
        """Whether ``outputs`` have the number of axes of this task; any number by default."""
        return True

    def read(self, outputs: Any) -> Tensor | None:
        """The one tensor of what a model returned, where it is none; ``None`` leaves it to the rules for all tasks.

        These take the only tensor, or the entry named ``logits`` or ``out``. It must be differentiable.
        """
        return None

    @abstractmethod
    def calibration_loss(self, name: str, outputs: Tensor) -> Tensor:
        """(): the loss of ``outputs``, summed over examples; its squared gradient weights errors of activations."""

    @abstractmethod
    def divergence(self, outputs: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
        """(): differentiable distance of ``outputs`` from ``target``, summed over examples; 0 if they are equal."""

    @abstractmethod
    def check_labels(self, labels: Labels, outputs: Tensor, where: str) -> None:
        """Raise ``InputError`` for labels, on the CPU, that are invalid for ``outputs``; ``where`` names the data."""

    def training_loss(self, outputs: Tensor, labels: Labels, label_smoothing: float) -> Tensor:
        """(): the loss against labels, summed over examples; raises ``InputError`` if the task has none."""
        what = f"expected a model that qplug can train on labels, received one for {self.name}"
        raise InputError(what, where="data.training", fix="leave finetune and qat out of the recipe")

    def correct(self, outputs: Tensor, labels: Labels) -> Tensor:
        """(): the number of examples with a correct prediction, while training; raises as ``training_loss``."""
        what = f"expected a task whose predictions are right or wrong, received {self.name}"
        raise InputError(what, where="data.training", fix="leave finetune and qat out of the recipe")

    def own_loss(self, name: str) -> str:
        """The loss of ``losses`` that a recipe's ``calibration.loss`` means: the first one, where it names none."""
        return name if name in self.losses else self.losses[0]

    def settled(self, labels: Labels) -> Task:
        """The task for evaluation examples with these labels: this one, unless their labels allow more."""
        return self

    def collect(self, labels: Sequence[Label]) -> Labels:
        """The labels of a batch: by default a list of ``Annotation``; tasks with numbers return a tensor (B, …)."""
        return list(labels)

    def join(self, parts: Sequence[Labels]) -> Labels:
        """The labels of all examples from those of the batches: tensors and lists are concatenated."""
        return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else [label for part in parts for label in part]

    def mismatch(self, label: Label, shape: Sequence[int]) -> str:
        """Why a label, before its example is prepared, does not suit outputs of ``shape``; empty if it does.

        ``shape`` is that of the outputs of one example.
        """
        return (
            "" if isinstance(label, Annotation) else f"the model predicts {self.label_kind}, and a label is {label!r}"
        )

    def classes(self, shape: Sequence[int]) -> int | None:
        """The number of classes whose scores outputs of ``shape`` are; ``None`` if labels are not classes."""
        return None

    @abstractmethod
    def energies(self, reference: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """y² and (y − ŷ)² of each output element, float64, in the shape of the outputs; 0 at padding."""

    @abstractmethod
    def metrics(self, float_: Tensor, quantized: Tensor, labels: Labels) -> dict[str, float]:
        """The metrics of both models over all examples; fractions are in 0 … 1.

        ``float.<score>``, ``quantized.<score>``, ``quantized.agreement`` and ``quantized.logit_sqnr_db``, the SQNR of
        the outputs, are among them. Any other ``float.<name>`` and ``quantized.<name>`` are fractions too.
        """

    @abstractmethod
    def by_example(self, float_: Tensor, quantized: Tensor, labels: Labels) -> Mapping[str, Tensor]:
        """(N,) tensors of each example's results, which comparisons of two runs read.

        Either ``labels`` and ``quantized.top1`` (int32), equal where a prediction is right: an exact test over examples
        then tells runs apart. Or ``quantized.by_example`` (float32), a score of each example in 0 … 1 and NaN where it
        has none: the signs of the differences are permuted.
        """

    @abstractmethod
    def judge(self, outputs: Tensor, labels: Labels) -> float | None:
        """The score of one model's outputs, in 0 … 1: the metric ``score``; ``None`` if it needs the float model's."""

    def chance(self, outputs: Tensor, labels: Labels) -> Chance | None:
        """The float model's accuracy, and what it would be if its predictions had nothing to do with the labels.

        ``None`` for a task whose score has no such value; ``doubts`` then finds a float model that is broken.
        """
        return None

    def doubts(self, score: float) -> list[str]:
        """A sentence if a float model of this score cannot be right; asked where ``chance`` is ``None``."""
        if score >= LEAST:
            return []
        return [f"the float model is as good as broken: {self.score_title} {score:.2%}. Check {self.causes}"]

    @abstractmethod
    def agreement(self, first: Tensor, second: Tensor) -> int:
        """The number of examples with equal predictions in both outputs."""

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
                total = total + self.calibration_loss(self.own_loss(name), row)
        return total
