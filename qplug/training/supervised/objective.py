"""The training loss: labels, and the float model's outputs where the recipe distils."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qplug.core.task import CLASSIFICATION, Task
from qplug.training.supervised.config import Training


@dataclass(frozen=True)
class TrainingObjective:
    """(1 − w)·L(labels) + w·T²·KL(teacher ‖ student), Hinton et al. 2015, with w = 0 without a teacher.

    Attributes:
        settings: smoothing of labels, and distillation.
        teacher: the float model in eval mode, where the recipe distils.
        task: what the outputs are, and the loss L against labels.
    """

    settings: Training
    teacher: nn.Module | None = None
    task: Task = CLASSIFICATION

    def __call__(self, outputs: Tensor, labels: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the examples: of the loss, with gradients, and of how many are right.

        Args:
            outputs: (n, …) of the model.
            labels: (n, …) int64.
            inputs: (n, …) of the model.

        Raises:
            InputError: the outputs cannot be trained.
        """
        outputs = outputs.float()
        loss = self.task.training_loss(outputs, labels, self.settings.label_smoothing)
        distill = self.settings.distill
        if distill is not None and self.teacher is not None:
            with torch.no_grad():
                target = self.teacher(inputs).float()
            divergence = self.task.divergence(outputs, target, distill.temperature)
            loss = (1.0 - distill.weight) * loss + distill.weight * distill.temperature**2 * divergence
        return loss, (self.task.predictions(outputs) == self.task.truth(labels, outputs)).sum()
