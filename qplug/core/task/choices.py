"""Tasks whose outputs are scores of choices, which a softmax makes probabilities: logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from qplug.core.errors import InputError
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
gradient (dL/dO)² of an output O weighs its errors.

``kl``: the *Hessian* of the KL divergence, Jᵀ(diag p − ppᵀ)J with J = dz/dO. L = vᵀz with a random v of covariance
diag p − ppᵀ has E[(dL/dO)²] = its diagonal (Hutchinson's estimate), so one backward is enough [ours].
``logits``: likewise for ‖ẑ − z‖² of the centred logits, v of random signs: no example is too certain to count [ours].
``cross_entropy``: against the model's own top-1, the empirical Fisher; certain examples hardly count [ours].
``kl_zero``: KL(float ‖ float) itself, as in PTQ4ViT's released code. Its gradient is zero, so only the rounding of
float32 is left; it is here to show that difference.
"""


KINDS = {1: "classes", 2: "answers to questions"}
"""Axes of labels → what they are."""


class Choices(Task):
    """One choice, or several, among scores along the last axis; a score of ``MASKED`` cannot be chosen."""

    losses = tuple(LOSSES)
    axes: ClassVar[int]
    """Axes of labels; outputs have one more."""

    def check_labels(self, labels: Tensor, outputs: Tensor, where: str) -> None:
        """Labels are of the kind that the model gives, and below its number of choices."""
        if labels.dim() != self.axes or outputs.dim() != self.axes + 1:
            one, other = KINDS.get(labels.dim(), "something else"), KINDS.get(outputs.dim() - 1, "something else")
            raise InputError(
                f"the labels are {one}, and the model gives {other}",
                where=where,
                fix="give the column of the labels that the model was trained for (label_column, answer_column)",
            )
        if int(labels.max()) >= outputs.shape[-1]:
            raise InputError(
                f"an example has label {int(labels.max())}, and the model has {outputs.shape[-1]} outputs",
                where=where,
                fix="give the class map (class_map) or label column that the model was trained with, or another model",
            )

    def calibration_loss(self, name: str, outputs: Tensor) -> Tensor:
        """One of ``LOSSES``."""
        return LOSSES[name](outputs)

    def divergence(self, outputs: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
        """Σ over examples of KL(softmax(target/T) ‖ softmax(outputs/T))."""
        p, q = ((z / temperature).log_softmax(-1) for z in (target, outputs))
        return F.kl_div(q, p, reduction="sum", log_target=True)

    def energies(self, reference: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """y² and (y − ŷ)²; 0 where y is ``MASKED``."""
        padding = reference == MASKED
        signal, noise = reference.double().square(), (outputs - reference).double().square()
        return signal.masked_fill(padding, 0.0), noise.masked_fill(padding, 0.0)

    def metrics(self, float_: Tensor, quantized: Tensor, labels: Tensor) -> dict[str, float]:
        """``float.top1``, ``quantized.top1`` and ``quantized.agreement`` as shares, and ``quantized.logit_sqnr_db``.

        Agreement is the share of examples with the float model's prediction. The SQNR of the logits is
        10·log10(Σy²/Σ(y − ŷ)²) over all examples and choices without padding; infinite where nothing was lost.
        """
        signal, noise = (energy.sum() for energy in self.energies(float_, quantized))
        return {
            "float.top1": self.accuracy(float_, labels),
            "quantized.top1": self.accuracy(quantized, labels),
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
    """Random signs less their mean; padding has none."""
    shown = logits != MASKED
    signs = (torch.randint(2, logits.shape, dtype=logits.dtype).to(logits.device) * 2 - 1) * shown
    return (signs - signs.sum(-1, keepdim=True) / shown.sum(-1, keepdim=True)) * shown


def _kl_probe(logits: Tensor) -> Tensor:
    """Random vectors with covariance diag p − ppᵀ, one an example."""
    p = logits.softmax(-1)
    v = p.sqrt() * torch.randn(p.shape, dtype=p.dtype).to(p.device)  # drawn on the CPU: the same on every device
    return v - p * v.sum(-1, keepdim=True)
