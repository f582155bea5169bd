"""The answers of models to every evaluation example."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qplug.core.examples import Labels
from qplug.core.task import CLASSIFICATION, Task


@dataclass
class Answers:
    """Outputs of one model for every example, float32 on the CPU, and the seconds that its forwards took."""

    outputs: Tensor
    seconds: float


@dataclass
class Outputs:
    """Outputs of both models for every evaluation example, on the CPU.

    Attributes:
        float_, quantized: (N, …) float32.
        labels: of the examples, as ``Task.join`` returns them: (N, …) int64, or a list.
    """

    float_: Tensor
    quantized: Tensor
    labels: Labels


def answers_of(
    models: Sequence[nn.Module],
    batches: Iterable[tuple[Tensor, Labels]],
    advance: Callable[[int], None] | None = None,
    task: Task = CLASSIFICATION,
) -> tuple[list[Answers], Labels]:
    """Run models over the examples, each of which is decoded once; also returns the labels, on the CPU.

    Raises:
        InputError: a label that a model has no output for.
    """
    rows: list[list[Tensor]] = [[] for _ in models]
    seconds, truth, done = [0.0] * len(models), [], 0
    with torch.no_grad():
        for inputs, found in batches:
            labels = found.cpu() if isinstance(found, Tensor) else found
            for index, model in enumerate(models):
                start = time.perf_counter()
                outputs = model(inputs).float().cpu()
                seconds[index] += time.perf_counter() - start
                task.check_labels(labels, outputs, "data.evaluation")
                rows[index].append(outputs)
            truth.append(labels)
            done += len(inputs)
            if advance is not None:
                advance(done)
    return [Answers(torch.cat(row), spent) for row, spent in zip(rows, seconds, strict=True)], task.join(truth)
