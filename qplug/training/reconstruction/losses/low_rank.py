"""FIMA-Q's loss: diagonal plus low-rank Fisher information, from gradients at the quantized block's output."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from qplug.core.errors import InputError
from qplug.training.reconstruction.losses.base import OutputLoss, Unit, normalized
from qplug.training.reconstruction.losses.gradients import TEMPERATURE, gradient

RANK = 5
"""Directions of the low-rank part, as in the released configurations (15 in the best ones at 3 bits)."""


class LowRank(OutputLoss):
    """½·Σ d·δ² + ½·‖Vᵀδ‖² with δ = ŷ − y: diagonal plus low rank (Wu et al. 2025, FIMA-Q, DPLR-FIM).

    The quantized block changes y by δ. The gradient of KL(float ‖ quantized) is then g = F·δ, with the Fisher
    information F: linear in F, while BRECQ takes squares. Diagonal: d = mean |g| over the images. Low rank: pairs
    (Δ, G) of differences and gradients, averaged over images, satisfy G = F·Δ. The F of rank k with this property is
    G(ΔᵀG)⁻¹Gᵀ.

    Deviations from the released code:

    - It has (|Δ|ᵀ|Δ|)⁻¹ instead of (ΔᵀG)⁻¹, and absolute values throughout. This does not recover F even if F has
      rank k. Here the signed equation is used. Directions whose eigenvalue in ΔᵀG does not exceed the asymmetry of
      ΔᵀG are omitted; the asymmetry would be zero if all images had the same F [ours].
    - It adds a pair after each k-th of the training. Here the k pairs are averages over k parts of the images, taken
      before the training [ours].
    - It divides both halves by their first values. Here both halves start at the same value too: the value of the
      diagonal half on all images, with d of mean 1 [ours].
    - It uses the KL divergence itself at the head. Here the head is treated like any other unit [ours].

    Args:
        rank: k; at most the number of images.
    """

    diagonal: Tensor
    directions: Tensor

    def __init__(self, rank: int = RANK) -> None:
        super().__init__()
        if rank < 1:
            raise InputError(f"expected a rank of at least 1, received {rank}")
        self.rank = rank
        self.register_buffer("diagonal", None)
        self.register_buffer("directions", None)

    def prepare(self, unit: Unit) -> None:
        """Two forwards and one backward over the images; stores (outputs of an image)·(k + 1) float32."""
        super().prepare(unit)
        rank = min(self.rank, sum(map(len, unit.batches)))
        differences: list[Tensor] = []
        deltas = gradients = sizes = torch.zeros(())
        first = 0
        for _, batch in unit.pieces():
            with torch.no_grad():
                loss = partial(unit.task.divergence, target=unit.model(batch), temperature=TEMPERATURE)

            def quantize_output(out: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
                quantized: Tensor = unit.quantized(*args, **kwargs)
                differences.append(unit.entries((quantized - out).cpu()))
                return quantized

            g = unit.entries(gradient(unit.model, unit.name, batch, loss, quantize_output)).flatten(1).cpu().double()
            part = one_hot(torch.arange(first, first + len(g)) % rank, rank).double().T
            deltas = deltas + part @ differences[-1].flatten(1).double()
            gradients, sizes = gradients + part @ g, sizes + g.abs().sum(0)
            first += len(g)
        self.diagonal = normalized(sizes.view(1, *differences[0].shape[1:]), unit)
        self.directions = directions(deltas, gradients).float()
        diagonal, low_rank = self._parts(torch.cat(differences).float())
        self.directions *= (diagonal / low_rank).sqrt() if low_rank > 0 else 0.0

    def forward(self, difference: Tensor, images: Tensor) -> Tensor:
        """As ``OutputLoss``; the loss does not depend on ``images``."""
        diagonal, low_rank = self._parts(difference)
        return 0.5 * (diagonal + low_rank)

    def _parts(self, difference: Tensor) -> tuple[Tensor, Tensor]:
        """(Σ d·δ², ‖Vᵀδ‖²), each divided by the number of positions and averaged over the images."""
        diagonal, directions = self.diagonal.to(difference.device), self.directions.to(difference.device)
        positions = difference[0].numel() / difference.shape[self.channel_axis]
        low_rank = (difference.flatten(1) @ directions).square().sum(1).mean() / positions
        return self.average(difference.square() * diagonal), low_rank


def directions(deltas: Tensor, gradients: Tensor) -> Tensor:
    """V with VVᵀ = G(ΔᵀG)⁺Gᵀ, computed from the symmetric positive part of ΔᵀG.

    Args:
        deltas: (k, N) float64, Δᵀ.
        gradients: (k, N) float64, Gᵀ.

    Returns:
        (N, k) float64; the columns of omitted directions are zero.
    """
    product = deltas @ gradients.T
    values, vectors = torch.linalg.eigh((product + product.T) / 2.0)
    noise = torch.linalg.matrix_norm((product - product.T) / 2.0, 2)
    significant = values > torch.maximum(noise, values.abs().max() * 1e-9)
    result: Tensor = gradients.T @ (vectors * torch.where(significant, values.clamp_min(0.0).rsqrt(), 0.0))
    return result
