"""Base class of tasks whose outputs are logits, which a softmax converts to probabilities of choices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from qplug.core.chance import Chance
from qplug.core.errors import InputError
from qplug.core.examples import Annotation, Label
from qplug.core.task.base import Task
from qplug.core.types import MASKED

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": lambda logits: (_kl_probe(logits.detach()) * logits).sum(),
    "logits": lambda logits: (_centred_signs(logits.detach()) * logits).sum(),
    "cross_entropy": lambda logits: F.cross_entropy(
        logits.flatten(0, -2), logits.detach().argmax(-1).flatten(), reduction="sum"
    ),
    "kl_zero": lambda logits: F.kl_div(logits.log_softmax(-1), logits.detach().softmax(-1), reduction="sum"),
}
"""Calibration losses by name: functions of the float logits z (B, …, choices), summed over examples. The squared
gradient (dL/dO)² of an output O weights its errors.

``kl``: the *Hessian* of the KL divergence, Jᵀ(diag p − ppᵀ)J with J = dz/dO. L = vᵀz with a random v of covariance
diag p − ppᵀ has E[(dL/dO)²] = the diagonal of this Hessian (Hutchinson's estimate), so one backward suffices [ours].
``logits``: likewise for ‖ẑ − z‖² of the centred logits, with v of random signs. Examples of high confidence have the
same weight as others [ours].
``cross_entropy``: against the model's own top-1, the empirical Fisher. Examples of high confidence have almost no
weight [ours].
``kl_zero``: KL(float ‖ float) itself, as in PTQ4ViT's released code. Its gradient is zero up to float32 rounding; it
serves as a comparison.
"""


KINDS = {1: "classes", 2: "answers to questions"}
"""Number of axes of labels → name of their kind, for messages."""
KIND_FIX = "give the column of the labels that the model was trained for (label_column, answer_column)"


class Choices(Task):
    """A task with one or several choices among scores along the last axis; a score of ``MASKED`` is never chosen."""

    losses = tuple(LOSSES)
    label_fix = KIND_FIX
    axes: ClassVar[int]
    """Number of axes of labels; outputs have one more."""

    def accepts(self, outputs: Tensor) -> bool:
        """Whether the outputs have one axis more than labels."""
        return outputs.dim() == self.axes + 1

    def collect(self, labels: Sequence[Label]) -> Tensor:
        """(B,) int64, or (B, 2)."""
        return torch.tensor(labels, dtype=torch.int64)

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """(N,) int64: a number for each prediction; equal predictions have equal numbers."""

    @abstractmethod
    def truth(self, labels: Tensor, outputs: Tensor) -> Tensor:
        """(N,) int64: the labels, numbered as in ``predictions``; −1 if no prediction can be correct."""

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(): the number of examples whose prediction equals the label."""
        return (self.predictions(outputs) == self.truth(labels, outputs)).sum()

    def judge(self, outputs: Tensor, labels: Tensor) -> float:
        """The fraction of examples whose prediction equals the label, in 0 … 1."""
        return float((self.predictions(outputs) == self.truth(labels, outputs)).double().mean())

    def chance(self, outputs: Tensor, labels: Tensor) -> Chance | None:
        """The accuracy, and what it would be if the predictions had nothing to do with the labels."""
        predictions, truth = self.predictions(outputs), self.truth(labels, outputs)
        return Chance.of(predictions.tolist(), truth.tolist())

    def agreement(self, first: Tensor, second: Tensor) -> int:
        """The number of examples with equal predictions in both outputs."""
        return int((self.predictions(first) == self.predictions(second)).sum())

    def check_labels(self, labels: Tensor, outputs: Tensor, where: str) -> None:
        """Check that labels are of the kind that the model predicts, and below its number of choices."""
        if what := self._mismatch(labels.dim(), outputs.dim() - 1):
            raise InputError(what, where=where, fix=KIND_FIX)
        if int(labels.max()) >= outputs.shape[-1]:
            raise InputError(
                f"an example has label {int(labels.max())}, and the model has {outputs.shape[-1]} outputs",
                where=where,
                fix="give the class map (class_map) or label column that the model was trained with, or another model",
            )

    def mismatch(self, label: Label, shape: Sequence[int]) -> str:
        """``the model predicts …, and the labels are …``, if these differ."""
        if isinstance(label, Annotation):
            predicted = KINDS.get(len(shape), "outputs of another task")
            return f"the model predicts {predicted}, and the labels are {type(label).__name__.lower()}"
        return self._mismatch(2 if isinstance(label, tuple) else 1, len(shape))

    def _mismatch(self, axes: int, predicted: int) -> str:
        if axes == self.axes == predicted:
            return ""
        expected = KINDS.get(predicted, "outputs of another task")
        received = KINDS.get(axes, f"a tensor with {axes} axes")
        return f"the model predicts {expected}, and the labels are {received}"

    def calibration_loss(self, name: str, outputs: Tensor) -> Tensor:
        """The loss ``LOSSES[name]``."""
        return LOSSES[name](outputs)

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
        """Σ over examples of KL(softmax(target/T) ‖ softmax(outputs/T))."""
        p, q = ((z / temperature).log_softmax(-1) for z in (target, outputs))
        return F.kl_div(q, p, reduction="sum", log_target=True)

    def energies(self, reference: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """y² and (y − ŷ)²; both are 0 for elements of y that are ``MASKED``."""
        padding = reference == MASKED
        signal, noise = reference.double().square(), (outputs - reference).double().square()
        return signal.masked_fill(padding, 0.0), noise.masked_fill(padding, 0.0)

    def metrics(self, float_: Tensor, quantized: Tensor, labels: Tensor) -> dict[str, float]:
        """``float.top1``, ``quantized.top1``, ``quantized.agreement`` as fractions, and ``quantized.logit_sqnr_db``.

        Agreement is the fraction of examples with the float model's prediction. The SQNR of the logits is
        10·log10(Σy²/Σ(y − ŷ)²) over all examples and choices without padding; infinite if the logits are equal.
        """
        signal, noise = (energy.sum() for energy in self.energies(float_, quantized))
        return {
            "float.top1": self.judge(float_, labels),
            "quantized.top1": self.judge(quantized, labels),
            "quantized.agreement": self.agreement(quantized, float_) / len(float_),
            "quantized.logit_sqnr_db": float(10 * torch.log10(signal / noise)),
        }

    def by_example(self, float_: Tensor, quantized: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """``labels`` and both models' ``top1`` (int32), ``logits.signal`` Σy² and ``logits.noise`` Σ(y − ŷ)²."""
        signal, noise = self.energies(float_, quantized)
        return {
            "labels": self.truth(labels, float_).int(),
            "float.top1": self.predictions(float_).int(),
            "quantized.top1": self.predictions(quantized).int(),
            "logits.signal": signal.flatten(1).sum(1).float(),
            "logits.noise": noise.flatten(1).sum(1).float(),
        }


def _centred_signs(logits: Tensor) -> Tensor:
    """Random signs minus their mean; 0 at padding."""
    valid = logits != MASKED
    signs = (torch.randint(2, logits.shape, dtype=logits.dtype).to(logits.device) * 2 - 1) * valid
    return (signs - signs.sum(-1, keepdim=True) / valid.sum(-1, keepdim=True)) * valid


def _kl_probe(logits: Tensor) -> Tensor:
    """Random vectors with covariance diag p − ppᵀ, one per example."""
    p = logits.softmax(-1)
    v = p.sqrt() * torch.randn(p.shape, dtype=p.dtype).to(p.device)  # drawn on the CPU: equal on every device
    return v - p * v.sum(-1, keepdim=True)
