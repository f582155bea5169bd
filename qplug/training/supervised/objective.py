"""The training loss: loss against the labels, and optional distillation from the float model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qplug.core.task import CLASSIFICATION, Task
from qplug.training.supervised.config import Training


@dataclass(frozen=True)
class TrainingObjective:
    """(1 − w)·L(labels) + w·T²·KL(teacher ‖ student), Hinton et al. 2015; w = 0 without a teacher.

    Attributes:
        settings: label smoothing and distillation.
        teacher: the float model in eval mode, if the recipe has ``distill``.
        task: the task of the model, which defines the loss L against labels.
    """

    settings: Training
    teacher: nn.Module | None = None
    task: Task = CLASSIFICATION

    def __call__(self, outputs: Tensor, labels: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the loss over the examples, with gradients, and the number of correct predictions.

        Args:
            outputs: (n, …) outputs of the model.
            labels: (n, …) int64.
            inputs: (n, …) inputs of the model, for the teacher.

        Raises:
            InputError: the task has no loss for these outputs.
        """
        outputs = outputs.float()
        loss = self.task.training_loss(outputs, labels, self.settings.label_smoothing)
        distill = self.settings.distill
        if distill is not None and self.teacher is not None:
            with torch.no_grad():
                target = self.teacher(inputs).float()
            divergence = self.task.divergence(outputs, target, distill.temperature)
            loss = (1.0 - distill.weight) * loss + distill.weight * distill.temperature**2 * divergence
        return loss, self.task.correct(outputs, labels)
