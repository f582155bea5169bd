"""APHQ-ViT's weights: the average rate at which the gradient at each output changes under perturbations."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from qplug.core.seeding import seeded
from qplug.training.reconstruction.losses.base import Unit, Weighted
from qplug.training.reconstruction.losses.gradients import TEMPERATURE, gradient

RELATIVE_STEP = 1e-2
"""The perturbation of an output, relative to the root mean square of all outputs of its image."""


class Perturbation(Weighted):
    """Σ h·(ŷ − y)² with the average perturbation Hessian h = mean over images of |J(y + ε·s) − J(y − ε·s)|/(2ε).

    Wu et al. 2025, APHQ-ViT: J is the gradient of KL(float ‖ perturbed) at the block's output. The absolute difference
    estimates the diagonal of the Hessian H, and all images share one average. If H is not diagonal, the estimate is
    |H·s|, the magnitude of a row of H rather than its diagonal element.

    Deviations from the paper:

    - It has s = 1. A LayerNorm behind the block removes this perturbation, so in a pre-norm ViT H·1 is zero, and the
      average contains only rounding errors. Here s has random signs, ± for each output of each image [ours].
    - Its ε is 1e-6, which float32 cannot add to outputs above 16. Here ε is ``RELATIVE_STEP`` of the root mean square
      of an image's outputs [ours].
    - It divides the loss by its first value. Here the weights have mean 1 [ours].
    - It uses the KL divergence itself at the head. Here the head is treated like any other unit [ours].
    """

    def prepare(self, unit: Unit) -> None:
        """Three forwards and two backwards over the images; stores (1, …) float32."""
        super().prepare(unit)
        total: Tensor | None = None
        first = 0
        for _, batch in unit.pieces():
            with torch.no_grad():
                loss = partial(unit.task.divergence, target=unit.model(batch), temperature=TEMPERATURE)
            steps: list[Tensor] = []  # ε and s of this batch, drawn at the first output

            def perturb(
                out: Tensor, *_: object, side: float, first: int = first, steps: list[Tensor] = steps
            ) -> Tensor:
                out = unit.entries(out)
                if not steps:
                    size = out.flatten(1).square().mean(1).sqrt().clamp_min(torch.finfo(out.dtype).tiny)
                    steps.append(size.view(-1, *[1] * (out.dim() - 1)) * RELATIVE_STEP)
                    steps.append(_signs(out, first, unit.seed))
                changed = out + side * steps[0] * steps[1]
                return changed[0] if unit.constant else changed

            up, down = (
                unit.entries(gradient(unit.model, unit.name, batch, loss, partial(perturb, side=side)))
                for side in (1.0, -1.0)
            )
            change = ((up - down) / (2.0 * steps[0])).abs().sum(0, keepdim=True, dtype=torch.float64)
            total = change if total is None else total + change
            first += len(up)
        assert total is not None
        self.weigh(total / first, unit)


def _signs(out: Tensor, first: int, seed: int) -> Tensor:
    """±1 for each output, drawn on the CPU from the image's index, so that device and batch size have no influence."""
    rows = []
    for index in range(first, first + len(out)):
        with seeded(seed, "perturbation", index):
            rows.append(torch.randint(2, out.shape[1:], dtype=torch.int8))
    return torch.stack(rows).to(out) * 2.0 - 1.0
