"""The interface of losses, the mean squared error, and losses that weight each squared error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qplug.core.task import CLASSIFICATION, Task


@dataclass(frozen=True)
class Unit:
    """The block or operation of a loss, before it is trained.

    Attributes:
        name: dotted path of its module.
        model: the float model, in eval mode; do not change it.
        quantized: the unit alone, quantized by the present plan; it takes the float unit's arguments, without
            gradients.
        batches: the calibration images, (B, C, H, W) each, on the model's device.
        channel_axis: the axis of the output's channels: 1 for a convolution's (B, C, H, W), −1 otherwise; 2 for a
            convolution's constant output, which has the axis of its only entry in front.
        loss: the recipe's ``calibration.loss``.
        seed: the recipe's seed.
        task: the task of the model.
        constant: the unit computes the same for every image. Its output is one entry, and the images pass one by one,
            so that each has a gradient of its own.
    """

    name: str
    model: nn.Module
    quantized: nn.Module
    batches: Sequence[Tensor]
    channel_axis: int
    loss: str
    seed: int
    task: Task = CLASSIFICATION
    constant: bool = False

    def pieces(self) -> Iterator[tuple[int, Tensor]]:
        """(index of the first image, images) of each batch; of each image for a constant."""
        first = 0
        for batch in self.batches:
            for piece in torch.split(batch, 1) if self.constant else (batch,):
                yield first, piece
                first += len(piece)

    def entries(self, output: Tensor) -> Tensor:
        """The unit's output, or its gradient, with the axis of its entries in front."""
        return output.unsqueeze(0) if self.constant else output


class OutputLoss(nn.Module):
    """The loss of a unit's output ŷ against the float output y: prepared once for a unit, called in every iteration.

    ``prepare`` stores its results in buffers on the CPU; ``to`` moves them. A call neither synchronizes with the host
    nor draws random numbers, so that a CUDA graph can capture it. Weights have mean 1: the loss then has the magnitude
    of the mean squared error, and the penalty of soft bits stays comparable.
    """

    channel_axis: int = -1

    def prepare(self, unit: Unit) -> None:
        """Compute the buffers for ``unit``, and discard those of an earlier unit. Overrides call this method.

        Raises:
            InputError: the weights cannot be computed from the model.
        """
        self.channel_axis = unit.channel_axis

    def forward(self, difference: Tensor, images: Tensor) -> Tensor:
        """The loss of a batch, differentiable: ().

        Args:
            difference: ŷ − y, (B, …) float, on the device of the block.
            images: (B,) int64, indices of the calibration images, or of their entries in ``Calls``, on the device of
                the loss's buffers.
        """
        raise TypeError(f"{type(self).__name__} does not implement forward()")

    def average(self, error: Tensor) -> Tensor:
        """Sum over the channels, mean over all other axes: (B, …) → ()."""
        return error.sum(self.channel_axis).mean()


class MeanSquared(OutputLoss):
    """‖ŷ − y‖² over the channels, averaged over images and positions."""

    def forward(self, difference: Tensor, images: Tensor) -> Tensor:
        """As ``OutputLoss``; the loss does not depend on ``images``."""
        return self.average(difference.square())


class Weighted(OutputLoss):
    """Σ w·(ŷ − y)² over the channels, averaged over images and positions; ``prepare`` calls ``weigh``."""

    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", None)

    def weigh(self, weights: Tensor, unit: Unit) -> None:
        """Store ``weights`` divided by their mean: (entries, …), or (1, …) for all entries; none is negative."""
        self.weights = normalized(weights, unit).cpu()

    def forward(self, difference: Tensor, images: Tensor) -> Tensor:
        """As ``OutputLoss``."""
        weights = self.weights if len(self.weights) == 1 else self.weights[images]
        return self.average(difference.square() * weights.to(difference.device))


def normalized(weights: Tensor, unit: Unit) -> Tensor:
    """``weights`` divided by their mean, in float32; raises ``InputError`` if the mean is not finite and positive."""
    from qplug.core.errors import InputError

    mean = weights.mean(dtype=weights.double().dtype)
    if not (mean.isfinite() and mean > 0):
        raise InputError(
            f"expected outputs that affect the model's outputs, but their weights have the mean {float(mean):.3g}",
            where=unit.name,
            fix="reconstruct it by loss: mse",
        )
    return (weights / mean).float()
