"""What is minimized: cross-entropy with label smoothing, and the divergence from the float model's answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qplug.core.errors import InputError
from qplug.training.supervised.config import Training


@dataclass(frozen=True)
class Objective:
    """(1 − w)·CE(smoothed labels) + w·T²·KL(teacher ‖ student), Hinton et al. 2015, with w = 0 without a teacher.

    Attributes:
        settings: smoothing and distillation.
        teacher: the float model in eval mode, where the recipe distils.
    """

    settings: Training
    teacher: nn.Module | None = None

    def __call__(self, logits: Tensor, labels: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the images: of the loss, with gradients, and of how many are right.

        Args:
            logits: (n, classes).
            labels: (n,) int64.
            inputs: (n, …) what the model was given.

        Raises:
            InputError: the model gives no classes.
        """
        if logits.dim() != 2:
            what = f"a model whose output is (images, classes) can be trained, and this gives {tuple(logits.shape)}"
            raise InputError(what, where="data.training")
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.settings.label_smoothing)
        distill = self.settings.distill
        if distill is not None and self.teacher is not None:
            with torch.no_grad():
                wanted = F.log_softmax(self.teacher(inputs).float() / distill.temperature, -1)
            found = F.log_softmax(logits / distill.temperature, -1)
            divergence = F.kl_div(found, wanted, reduction="sum", log_target=True)
            loss = (1.0 - distill.weight) * loss + distill.weight * distill.temperature**2 * divergence
        return loss, (logits.argmax(-1) == labels).sum()


def check_labels(labels: Tensor, classes: int) -> None:
    """Raises ``InputError`` for a label, (n,) on the CPU, that the model has no output for."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"a label is {low if low < 0 else high}, and the model has the classes 0 … {classes - 1}",
            where="data.training",
            fix="give the class map, or the label column, that the model was trained with",
        )
