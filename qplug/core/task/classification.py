"""Classification: one class per example."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from qplug.core.errors import InputError
from qplug.core.task.choices import Choices


class Classification(Choices):
    """Outputs (N, classes), labels (N,) int64."""

    name = "classification"
    axes = 1
    outputs = "(B, classes)"
    causes = "the labels (class_map, label_column), the preprocessing (mean, std, input_size), or the checkpoint"

    def training_loss(self, outputs: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Cross-entropy with smoothed labels."""
        if outputs.dim() != 2:
            what = f"expected outputs (images, classes) to train on, received {tuple(outputs.shape)}"
            raise InputError(what, where="data.training")
        return F.cross_entropy(outputs, labels, reduction="sum", label_smoothing=label_smoothing)

    def check_labels(self, labels: Tensor, outputs: Tensor, where: str) -> None:
        """Check that labels are integers from 0 to the number of classes − 1."""
        super().check_labels(labels, outputs, where)
        if int(labels.min()) < 0:
            what = f"an example has label {int(labels.min())}, and classes count from 0"
            raise InputError(what, where=where, fix="set the label column that the model was trained with")

    def classes(self, shape: Sequence[int]) -> int | None:
        """The length of outputs of shape (classes,)."""
        return shape[0] if len(shape) == 1 else None

    def predictions(self, outputs: Tensor) -> Tensor:
        """(N,) index of the largest logit."""
        return outputs.argmax(-1)

    def truth(self, labels: Tensor, outputs: Tensor) -> Tensor:
        """(N,) the labels themselves."""
        return labels
