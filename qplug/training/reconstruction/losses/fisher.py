"""BRECQ's weights: the squared gradient at every output of every image."""

from __future__ import annotations

from functools import partial

import torch

from qplug.core.errors import InputError
from qplug.training.reconstruction.losses.base import Unit, Weighted
from qplug.training.reconstruction.losses.gradients import gradient


class Fisher(Weighted):
    """Σ (dL/dy)²·(ŷ − y)²: the diagonal of the Fisher information replaces the Hessian (BRECQ, Eq. 10).

    L is the recipe's ``calibration.loss`` at the float model; BRECQ takes the cross-entropy of the labels. With ``kl``
    the squares are, on average, the diagonal of the KL divergence's Hessian itself [ours]. Each image has its own
    weights; those of a constant are summed over the images.
    """

    def prepare(self, unit: Unit) -> None:
        """One forward and one backward over the images; stores (images, …) float32."""
        super().prepare(unit)
        if unit.loss == "none":
            raise InputError(
                "loss: fisher takes gradients of calibration.loss: "
                f"expected one of {', '.join(unit.task.losses)}, received '{unit.loss}'",
                where=unit.name,
                fix="set calibration.loss, or choose another loss for reconstruction",
            )
        squares: list[torch.Tensor] = []
        for first, batch in unit.pieces():
            loss = partial(unit.task.sum_of_losses, unit.loss, first=first, seed=unit.seed)
            own = unit.entries(gradient(unit.model, unit.name, batch, loss).square().cpu())
            squares = [squares[0] + own] if unit.constant and squares else [*squares, own]
        self.weigh(torch.cat(squares), unit)
