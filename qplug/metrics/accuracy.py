"""Top-1, agreement and logit SQNR on the evaluation images, for float and quantised model in one pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qplug.errors import InputError


@dataclass
class Logits:
    """What both models said of every evaluation image, on the CPU.

    Attributes:
        float_, quantized: (N, classes) float32.
        labels: (N,) int64.
        seconds: of each model's forwards, by ``float`` and ``quantized``.
    """

    float_: Tensor
    quantized: Tensor
    labels: Tensor
    seconds: dict[str, float] = field(default_factory=dict)


def evaluate(
    float_model: nn.Module,
    quantized: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    advance: Callable[[int], None] | None = None,
) -> Logits:
    """Run both models over the images, decoding each once.

    Raises:
        InputError: a label that the model has no output for.
    """
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    seconds = {"float": 0.0, "quantized": 0.0}
    done = 0
    with torch.no_grad():
        for images, labels in batches:
            outputs = []
            for name, model in (("float", float_model), ("quantized", quantized)):
                start = time.perf_counter()
                outputs.append(model(images).float().cpu())
                seconds[name] += time.perf_counter() - start
            if int(labels.max()) >= outputs[0].shape[1]:
                raise InputError(
                    f"an image has label {int(labels.max())}, and the model has {outputs[0].shape[1]} outputs",
                    where="data.evaluation",
                    fix="give the class map that the model was trained with (class_map), or another model",
                )
            rows.append((outputs[0], outputs[1], labels.cpu()))
            done += len(images)
            if advance is not None:
                advance(done)
    float_logits, quantized_logits, truth = (torch.cat(column) for column in zip(*rows, strict=True))
    return Logits(float_logits, quantized_logits, truth, seconds)


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
