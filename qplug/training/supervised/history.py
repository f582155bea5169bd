"""The history of a training: its loss curve, its accuracies and its duration."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

POINTS = 500
"""Largest number of points of a stored curve; each point is the mean of one stretch of steps."""


@dataclass
class History:
    """The history of one training.

    Attributes:
        name: the stage, ``finetune`` or ``qat``.
        epochs, steps, images: number of passes, of batches in total, and of training images.
        processes: number of processes that share every batch.
        loss: for every step so far, the mean over the batch's (augmented) images.
        top1: for every step so far, the share of these images with a correct prediction, in 0 … 1.
        held_out: (steps done, top-1) on the held-out images; the first entry precedes the first step.
        untouched: parameters without a gradient in the last step, which training does not change.
        seconds: duration, including the time before a resume.
    """

    name: str
    epochs: int
    steps: int
    images: int
    processes: int = 1
    loss: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    untouched: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def stretch(self) -> int:
        """Steps of one point of the curve."""
        return max(1, -(-self.steps // POINTS))

    def curve(self) -> list[tuple[int, float, float]]:
        """(steps done, mean loss, mean top-1) of every stretch."""
        width = self.stretch
        starts = range(0, len(self.loss), width)
        return [
            (min(i + width, len(self.loss)), fmean(self.loss[i : i + width]), fmean(self.top1[i : i + width]))
            for i in starts
        ]

    def ends(self) -> tuple[float, float]:
        """Mean loss over the first and over the last tenth of the steps."""
        tenth = max(1, len(self.loss) // 10)
        return fmean(self.loss[:tenth]), fmean(self.loss[-tenth:])

    def metrics(self) -> dict[str, Any]:
        """The values for ``metrics.json``, by names that begin with the stage."""
        first, last = self.ends()
        epoch = max(1, len(self.top1) // self.epochs)
        values: dict[str, Any] = {
            "epochs": self.epochs,
            "steps": self.steps,
            "images": self.images,
            "processes": self.processes,
            "loss_first": first,
            "loss_last": last,
            "train_top1": fmean(self.top1[-epoch:]),
        }
        if self.held_out:
            accuracies = [top1 for _, top1 in self.held_out]
            values |= {
                "held_out_first": accuracies[0],
                "held_out_best": max(accuracies),
                "held_out_last": accuracies[-1],
            }
        return {f"{self.name}.{key}": value for key, value in values.items()}

    def describe(self) -> str:
        """A summary in one line, for the plan."""
        first, last = self.ends()
        text = f"{self.epochs} epochs of {self.images} images, {self.steps} steps, loss {first:.3f} → {last:.3f}"
        if self.held_out:
            before, after = self.held_out[0][1], self.held_out[-1][1]
            text += f", held-out top-1 {100 * before:.1f} → {100 * after:.1f} %"
        return text

    def to_dict(self) -> dict[str, Any]:
        """The content of ``training.json``."""
        return {
            **self.metrics(),
            "seconds": self.seconds,
            "curve": {"columns": ["steps", "loss", "top1"], "points": self.curve()},
            "held_out": self.held_out,
        }
