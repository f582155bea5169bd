"""The interface of losses, and those that weigh each output by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from qplug.core.task import CLASSIFICATION, Task


@dataclass(frozen=True)
class Unit:
    """What a loss can know of the block or operation whose output it judges, before anything is learned.

    Attributes:
        name: dotted path of its module.
        model: the float model, in eval mode; leave it as it is.
        quantized: the unit alone, quantized as the plan has it now; takes what the float one takes, without gradients.
        batches: the calibration images, (B, C, H, W) each, on the model's device.
        channel_axis: that of the channels of its output: 1 of convolutions' (B, C, H, W), −1 else.
        loss: the recipe's ``calibration.loss``.
        seed: the recipe's.
        task: what the model's outputs are.
    """

    name: str
    model: nn.Module
    quantized: nn.Module
    batches: Sequence[Tensor]
    channel_axis: int
    loss: str
    seed: int
    task: Task = CLASSIFICATION


class OutputLoss(nn.Module):
    """The loss of a unit's output y against the float one: prepared once for a unit, then called in every iteration.

    What it prepares it keeps in buffers, on the CPU; ``to`` moves them. A call waits for nothing on the host and draws
    nothing, so that it can be captured in a CUDA graph. To keep the penalty of soft bits comparable, a loss is of the
    size of the mean squared error: weights have mean 1.
    """

    channel_axis: int = -1

    def prepare(self, unit: Unit) -> None:
        """Learn what is needed of ``unit``, and forget any unit before it. Overrides call this one.

        Raises:
            InputError: the model gives nothing to weigh by.
        """
        self.channel_axis = unit.channel_axis

    def forward(self, difference: Tensor, images: Tensor) -> Tensor:
        """The loss of a batch, differentiable: ().

        Args:
            difference: ŷ − y, (B, …) float, on the device that learns.
            images: (B,) int64, which of the calibration images they are, or which entries of these where an operation
                sees several of each, as ``Calls`` has them, on the device of the loss's tensors.
        """
        raise TypeError(f"{type(self).__name__} does not implement forward()")

    def average(self, error: Tensor) -> Tensor:
        """Σ over the channels, mean over everything else: (B, …) → ()."""
        return error.sum(self.channel_axis).mean()


class MeanSquared(OutputLoss):
    """‖ŷ − y‖² over the channels, its mean over images and positions."""

    def forward(self, difference: Tensor, images: Tensor) -> Tensor:
        """As ``OutputLoss``; whichever images they are."""
        return self.average(difference.square())


class Weighted(OutputLoss):
    """Σ w·(ŷ − y)² over the channels, its mean over images and positions; ``prepare`` calls ``weigh``."""

    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", None)

    def weigh(self, weights: Tensor, unit: Unit) -> None:
        """Keep ``weights``, (entries, …) or (1, …) for all of them, none negative, divided by their mean."""
        self.weights = normalized(weights, unit).cpu()

    def forward(self, difference: Tensor, images: Tensor) -> Tensor:
        """As ``OutputLoss``."""
        weights = self.weights if len(self.weights) == 1 else self.weights[images]
        return self.average(difference.square() * weights.to(difference.device))


def normalized(weights: Tensor, unit: Unit) -> Tensor:
    """``weights`` over their mean, in float32; raises ``InputError`` where there is no mean to divide by."""
    from qplug.core.errors import InputError

    mean = weights.mean(dtype=weights.double().dtype)
    if not (mean.isfinite() and mean > 0):
        raise InputError(
            f"expected outputs that matter to the model's outputs, but their weights have the mean {float(mean):.3g}",
            where=unit.name,
            fix="reconstruct it by loss: mse",
        )
    return (weights / mean).float()
