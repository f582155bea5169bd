"""Top-1, agreement and logit SQNR on the evaluation images, for float and quantised model in one pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qplug.errors import InputError


@dataclass
class Evaluation:
    """What one model said of every image: (N, classes) float32 on the CPU, and the seconds that its forwards took."""

    logits: Tensor
    seconds: float


@dataclass
class Logits:
    """What both models said of every evaluation image, on the CPU.

    Attributes:
        float_, quantized: (N, classes) float32.
        labels: (N,) int64.
    """

    float_: Tensor
    quantized: Tensor
    labels: Tensor

    def by_image(self) -> dict[str, Tensor]:
        """What comparisons need of every image, (N,) each: the label and both models' top-1 (int32), and the energies.

        ``logits.signal`` is Σy² and ``logits.noise`` Σ(y − ŷ)² over the classes, float32.
        """
        return {
            "labels": self.labels.int(),
            "float.top1": self.float_.argmax(1).int(),
            "quantized.top1": self.quantized.argmax(1).int(),
            "logits.signal": self.float_.double().square().sum(1).float(),
            "logits.noise": (self.quantized - self.float_).double().square().sum(1).float(),
        }


def evaluate(
    models: Sequence[nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    advance: Callable[[int], None] | None = None,
) -> tuple[list[Evaluation], Tensor]:
    """Run models over the images, decoding each once; also returns the labels (N,) int64, on the CPU.

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
                if int(labels.max()) >= logits.shape[1]:
                    raise InputError(
                        f"an image has label {int(labels.max())}, and the model has {logits.shape[1]} outputs",
                        where="data.evaluation",
                        fix="give the class map that the model was trained with (class_map), or another model",
                    )
                rows[index].append(logits)
            truth.append(labels.cpu())
            done += len(images)
            if advance is not None:
                advance(done)
    return [Evaluation(torch.cat(row), spent) for row, spent in zip(rows, seconds, strict=True)], torch.cat(truth)


def compare(logits: Logits) -> dict[str, float]:
    """``float.top1``, ``quantized.top1``, ``quantized.agreement`` as shares, and ``quantized.logit_sqnr_db``.

    Agreement is the share of images with the float model's top-1. The SQNR of the logits is
    10·log10(Σy²/Σ(y − ŷ)²) over all images and classes, infinite where nothing was lost.
    """
    ours, theirs = logits.quantized.argmax(1), logits.float_.argmax(1)
    noise = (logits.quantized - logits.float_).double().square().sum()
    signal = logits.float_.double().square().sum()
    return {
        "float.top1": float((theirs == logits.labels).double().mean()),
        "quantized.top1": float((ours == logits.labels).double().mean()),
        "quantized.agreement": float((ours == theirs).double().mean()),
        "quantized.logit_sqnr_db": float(10 * torch.log10(signal / noise)),
    }
