"""Extractive question answering: the first and the last token of each answer."""

from __future__ import annotations

import torch
from torch import Tensor

from qplug.core.errors import InputError
from qplug.core.task.choices import Choices


class QuestionAnswering(Choices):
    """Outputs (N, 2, L): scores of L tokens as start and as end, ``MASKED`` at padding; labels (N, 2) int64.

    A label is negative if no answer can be correct. Top-1 is the exact match of start and end.
    """

    name = "question_answering"
    axes = 2
    outputs = "(B, 2, tokens)"
    causes = "the labels (answer_column), the tokenizer, or the checkpoint"

    def training_loss(self, outputs: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Raises ``InputError``: training on answers is not supported."""
        what = f"expected outputs (images, classes) to train on, received {tuple(outputs.shape)}"
        raise InputError(what, where="data.training")

    def predictions(self, outputs: Tensor) -> Tensor:
        """(N,) start·L + end."""
        return self.truth(outputs.argmax(-1), outputs)

    def truth(self, labels: Tensor, outputs: Tensor) -> Tensor:
        """(N,) start·L + end; −1 for a negative label."""
        return torch.where((labels < 0).any(1), -1, labels[:, 0] * outputs.shape[-1] + labels[:, 1])
