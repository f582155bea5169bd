"""Top-1, agreement and logit SQNR on the evaluation images or texts, for float and quantized model in one pass.

Logits are (N, classes). Where the model answers questions they are (N, 2, L), of starts and ends over L tokens; top-1
is then the exact match of both, and labels are (N, 2), negative where no answer can be right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.core.types import MASKED


@dataclass
class Answers:
    """What one model said of every image: logits, float32 on the CPU, and the seconds that its forwards took."""

    logits: Tensor
    seconds: float


@dataclass
class Logits:
    """What both models said of every evaluation image, on the CPU.

    Attributes:
        float_, quantized: (N, classes) or (N, 2, L) float32.
        labels: (N,) or (N, 2) int64.
    """

    float_: Tensor
    quantized: Tensor
    labels: Tensor

    def by_image(self) -> dict[str, Tensor]:
        """What comparisons need of every image, (N,) each: the label and both models' top-1 (int32), and the energies.

        A span of tokens is one number, start·L + end. ``logits.signal`` is Σy² and ``logits.noise`` Σ(y − ŷ)² over the
        classes, or over all tokens but padding, float32.
        """
        signal, noise = signal_and_noise(self.float_, self.quantized)
        return {
            "labels": as_one(self.labels, self.float_).int(),
            "float.top1": top1(self.float_).int(),
            "quantized.top1": top1(self.quantized).int(),
            "logits.signal": signal.flatten(1).sum(1).float(),
            "logits.noise": noise.flatten(1).sum(1).float(),
        }


def top1(logits: Tensor) -> Tensor:
    """(N,) int64: the class of the largest logit, or start·L + end of the span."""
    return as_one(logits.argmax(-1), logits)


def as_one(places: Tensor, logits: Tensor) -> Tensor:
    """(N,) the classes as they are, or spans (N, 2) as start·L + end; −1 for one that no answer can be."""
    if places.dim() == 1:
        return places
    return torch.where((places < 0).any(1), -1, places[:, 0] * logits.shape[-1] + places[:, 1])


def share_right(logits: Tensor, labels: Tensor) -> float:
    """Share of examples whose top-1 is the label, in 0 … 1."""
    return float((top1(logits) == as_one(labels, logits)).double().mean())


def signal_and_noise(float_: Tensor, quantized: Tensor) -> tuple[Tensor, Tensor]:
    """y² and (y − ŷ)² of every logit, in their shape, float64; 0 where it is ``MASKED``."""
    signal, noise = float_.double().square(), (quantized - float_).double().square()
    if float_.dim() > 2:
        padding = float_ == MASKED
        signal, noise = signal.masked_fill(padding, 0.0), noise.masked_fill(padding, 0.0)
    return signal, noise


def answers_of(
    models: Sequence[nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    advance: Callable[[int], None] | None = None,
) -> tuple[list[Answers], Tensor]:
    """Run models over the images, decoding each once; also returns the labels, int64 on the CPU.

    Raises:
        InputError: a label that a model has no output for.
    """
    rows: list[list[Tensor]] = [[] for _ in models]
    seconds, truth, done = [0.0] * len(models), [], 0
    with torch.no_grad():
        for images, labels in batches:
            for index, model in enumerate(models):
                start = time.perf_counter()
                logits = model(images).float().cpu()
                seconds[index] += time.perf_counter() - start
                _check_fit(labels, logits)
                rows[index].append(logits)
            truth.append(labels.cpu())
            done += len(images)
            if advance is not None:
                advance(done)
    return [Answers(torch.cat(row), spent) for row, spent in zip(rows, seconds, strict=True)], torch.cat(truth)


def _check_fit(labels: Tensor, logits: Tensor) -> None:
    if labels.dim() != logits.dim() - 1:
        kinds = {1: "classes", 2: "answers to questions"}
        given = kinds.get(logits.dim() - 1, "something else")
        raise InputError(
            f"the labels are {kinds[labels.dim()]}, and the model gives {given}",
            where="data.evaluation",
            fix="give the column of the labels that the model was trained for (label_column, answer_column)",
        )
    if int(labels.max()) >= logits.shape[-1]:
        raise InputError(
            f"an image has label {int(labels.max())}, and the model has {logits.shape[-1]} outputs",
            where="data.evaluation",
            fix="give the class map that the model was trained with (class_map), or another model",
        )


def compare(logits: Logits) -> dict[str, float]:
    """``float.top1``, ``quantized.top1``, ``quantized.agreement`` as shares, and ``quantized.logit_sqnr_db``.

    Agreement is the share of images with the float model's top-1. The SQNR of the logits is
    10·log10(Σy²/Σ(y − ŷ)²) over all images and classes, or all tokens but padding, infinite where nothing was lost.
    """
    ours, theirs = top1(logits.quantized), top1(logits.float_)
    signal, noise = (energy.sum() for energy in signal_and_noise(logits.float_, logits.quantized))
    return {
        "float.top1": share_right(logits.float_, logits.labels),
        "quantized.top1": share_right(logits.quantized, logits.labels),
        "quantized.agreement": float((ours == theirs).double().mean()),
        "quantized.logit_sqnr_db": float(10 * torch.log10(signal / noise)),
    }
