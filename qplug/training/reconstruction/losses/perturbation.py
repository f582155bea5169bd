"""APHQ-ViT's weights: how fast the gradient at an output changes, on average over the images."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from qplug.core.seeding import seeded
from qplug.training.reconstruction.losses.base import Unit, Weighted
from qplug.training.reconstruction.losses.gradients import TEMPERATURE, gradient

STEP = 1e-2
"""The perturbation of an output, relative to the root mean square of all outputs of its image."""


class Perturbation(Weighted):
    """Σ h·(ŷ − y)² with the average perturbation Hessian h = mean over images of |J(y + ε·s) − J(y − ε·s)|/(2ε).

    Wu et al. 2025, APHQ-ViT: J is the gradient of KL(float ‖ perturbed) at the block's output, the difference is taken
    as the diagonal of the Hessian, in absolute value, and one average serves all images. Where the Hessian H is not
    diagonal it is |H·s|, the size of a row of H rather than its diagonal element.

    Deviations: theirs has s = 1, which a LayerNorm behind the block takes out again, so that in a pre-norm ViT H·1 is
    zero and what is averaged is rounding; here s are random signs, ± for each output of each image [ours]. Their ε is
    1e-6, which float32 cannot add to outputs above 16; here it is ``STEP`` of an image's outputs [ours]. Their loss is
    divided by its first value, this one's weights have mean 1 [ours]. The head, where theirs takes the KL divergence
    itself, is treated as any other unit [ours].
    """

    def prepare(self, unit: Unit) -> None:
        """Three forwards and two backwards over the images; (1, …) float32 is kept."""
        super().prepare(unit)
        total: Tensor | None = None
        first = 0
        for batch in unit.batches:
            with torch.no_grad():
                loss = partial(unit.task.divergence, target=unit.model(batch), temperature=TEMPERATURE)
            steps: list[Tensor] = []  # ε and s of this batch, drawn when the first output is seen

            def put(out: Tensor, *_: object, side: float, first: int = first, steps: list[Tensor] = steps) -> Tensor:
                if not steps:
                    size = out.flatten(1).square().mean(1).sqrt().clamp_min(torch.finfo(out.dtype).tiny)
                    steps.append(size.view(-1, *[1] * (out.dim() - 1)) * STEP)
                    steps.append(_signs(out, first, unit.seed))
                return out + side * steps[0] * steps[1]

            up, down = (gradient(unit.model, unit.name, batch, loss, partial(put, side=side)) for side in (1.0, -1.0))
            change = ((up - down) / (2.0 * steps[0])).abs().sum(0, keepdim=True, dtype=torch.float64)
            total = change if total is None else total + change
            first += len(up)
        assert total is not None
        self.weigh(total / first, unit)


def _signs(out: Tensor, first: int, seed: int) -> Tensor:
    """±1 for each output, drawn on the CPU by the image's number: the same on every device and at every batch size."""
    rows = []
    for index in range(first, first + len(out)):
        with seeded(seed, "perturbation", index):
            rows.append(torch.randint(2, out.shape[1:], dtype=torch.int8))
    return torch.stack(rows).to(out) * 2.0 - 1.0
