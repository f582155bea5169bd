"""Extractive question answering: the first and the last token of each answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qplug.core.chance import Chance
from qplug.core.examples import Answers, Label, Labels
from qplug.core.task.answers import TokenAnswers, best, decode, exact_match, f1
from qplug.core.task.base import Task
from qplug.core.task.choices import Choices


class QuestionAnswering(Choices):
    """Outputs (N, 2, L): scores of L tokens as start and as end, ``MASKED`` at padding.

    Labels are the first and last token, (N, 2) int64, negative if no answer can be correct. Top-1 is their exact match.
    Where the labels hold the texts too, ``DecodedAnswers`` takes this task's place.
    """

    name = "question_answering"
    axes = 2
    outputs = "(B, 2, tokens)"
    causes = "the labels (answer_column), the tokenizer, or the checkpoint"

    def collect(self, labels: Sequence[Label]) -> Labels:
        """(B, 2) int64, or a list of ``TokenAnswers``."""
        return list(labels) if isinstance(labels[0], TokenAnswers) else super().collect(labels)

    def settled(self, labels: Labels) -> Task:
        """``DecodedAnswers`` if the labels hold texts; else this task."""
        return self if isinstance(labels, Tensor) else DecodedAnswers()

    def mismatch(self, label: Label, shape: Sequence[int]) -> str:
        """As ``Choices``; the texts of answers suit outputs of two axes."""
        return super().mismatch((0, 0) if isinstance(label, (Answers, TokenAnswers)) else label, shape)

    def check_labels(self, labels: Labels, outputs: Tensor, where: str) -> None:
        """Check that labels are pairs of tokens of the input."""
        super().check_labels(_tokens(labels), outputs, where)

    def predictions(self, outputs: Tensor) -> Tensor:
        """(N,) start·L + end."""
        return self.truth(outputs.argmax(-1), outputs)

    def truth(self, labels: Labels, outputs: Tensor) -> Tensor:
        """(N,) start·L + end; −1 for a negative label."""
        tokens = _tokens(labels)
        return torch.where((tokens < 0).any(1), -1, tokens[:, 0] * outputs.shape[-1] + tokens[:, 1])


class DecodedAnswers(QuestionAnswering):
    """Answers judged as texts: exact match and F1 of SQuAD's official script, the best over the accepted answers.

    The text is that of the best span of tokens (``answers.decode``). Labels are a list of ``TokenAnswers``. Examples
    are told apart by their F1.
    """

    score = "f1"
    score_title = "F1"

    def texts(self, outputs: Tensor, labels: Sequence[TokenAnswers]) -> list[str]:
        """The decoded answers."""
        may_be_empty = any(not label.texts for label in labels)
        return [decode(one, label, may_be_empty) for one, label in zip(outputs, labels, strict=True)]

    def scores(self, outputs: Tensor, labels: Sequence[TokenAnswers]) -> Tensor:
        """(N, 2) float32: exact match and F1 of each example, in 0 … 1."""
        texts = self.texts(outputs, labels)
        pairs = [(text, label.texts) for text, label in zip(texts, labels, strict=True)]
        return torch.tensor([[best(exact_match, *pair), best(f1, *pair)] for pair in pairs])

    def judge(self, outputs: Tensor, labels: Labels) -> float:
        """The mean F1."""
        return float(self.scores(outputs, labels)[:, 1].double().mean())

    def chance(self, outputs: Tensor, labels: Labels) -> Chance | None:
        """``None``: texts that share words by chance have no exact distribution."""
        return None

    def metrics(self, float_: Tensor, quantized: Tensor, labels: Labels) -> dict[str, float]:
        """``exact_match``, ``f1`` and ``top1`` of both models, beside agreement and SQNR; top1 is that of tokens."""
        found = super().metrics(float_, quantized, labels)
        for name, outputs in (("float", float_), ("quantized", quantized)):
            match, score = self.scores(outputs, labels).double().mean(0).tolist()
            same = (self.predictions(outputs) == self.truth(labels, outputs)).double().mean()
            found |= {f"{name}.exact_match": match, f"{name}.f1": score, f"{name}.top1": float(same)}
        return found

    def by_example(self, float_: Tensor, quantized: Tensor, labels: Labels) -> dict[str, Tensor]:
        """As ``Choices``, with ``float.by_example`` and ``quantized.by_example``, the F1."""
        return super().by_example(float_, quantized, labels) | {
            f"{name}.by_example": self.scores(outputs, labels)[:, 1].contiguous()
            for name, outputs in (("float", float_), ("quantized", quantized))
        }


def _tokens(labels: Labels) -> Tensor:
    """(N, 2) int64."""
    if isinstance(labels, Tensor):
        return labels
    return torch.tensor([[label.start, label.end] for label in labels], dtype=torch.int64)
