"""FIMA-Q's loss: a diagonal and a few directions of the Fisher information, from gradients of the quantized block."""

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
"""Directions of the low-rank part, as in the released configurations (15 in their best ones at 3 bits)."""


class LowRank(OutputLoss):
    """Half Σ d·δ² and half ‖Vᵀδ‖², δ = ŷ − y: diagonal plus low rank (Wu et al. 2025, FIMA-Q, DPLR-FIM).

    With the block quantized, y off by δ, the gradient of KL(float ‖ quantized) is g = F·δ, F the Fisher information:
    linear in it, where BRECQ squares. Diagonal: d = mean |g| over the images. Low rank: pairs (Δ, G) of differences and
    their gradients, averaged over images, of which G = F·Δ; the F of rank k that does this is G(ΔᵀG)⁻¹Gᵀ.

    Deviations: the released code has (|Δ|ᵀ|Δ|)⁻¹ in the place of (ΔᵀG)⁻¹ and absolute values throughout, which does
    not give F back even where F is of rank k; here it is the equation, with signs, and directions are left out whose
    eigenvalue in ΔᵀG is no larger than its asymmetry, which would be zero if all images had one F [ours]. Theirs adds a
    pair at each k-th of the learning; here the k pairs are averages over k parts of the images, before it [ours]. Both
    halves are divided by their first values in theirs; here they start at one value too, that of the diagonal one with
    d of mean 1, on all images [ours]. The head, where theirs takes the KL divergence itself, is as any other unit
    [ours].

    Args:
        rank: k; at most the number of images.
    """

    diagonal: Tensor
    directions: Tensor

    def __init__(self, rank: int = RANK) -> None:
        super().__init__()
        if rank < 1:
            raise InputError(f"expected a rank of at least 1, got {rank}")
        self.rank = rank
        self.register_buffer("diagonal", None)
        self.register_buffer("directions", None)

    def prepare(self, unit: Unit) -> None:
        """Two forwards and one backward over the images; (outputs of an image)·(k + 1) float32 are kept."""
        super().prepare(unit)
        rank = min(self.rank, sum(map(len, unit.batches)))
        differences: list[Tensor] = []
        deltas = gradients = sizes = torch.zeros(())
        first = 0
        for batch in unit.batches:
            with torch.no_grad():
                loss = partial(unit.task.divergence, target=unit.model(batch), temperature=TEMPERATURE)

            def put(out: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
                found: Tensor = unit.quantized(*args, **kwargs)
                differences.append((found - out).cpu())
                return found

            g = gradient(unit.model, unit.name, batch, loss, put).flatten(1).cpu().double()
            part = one_hot(torch.arange(first, first + len(g)) % rank, rank).double().T
            deltas = deltas + part @ differences[-1].flatten(1).double()
            gradients, sizes = gradients + part @ g, sizes + g.abs().sum(0)
            first += len(g)
        self.diagonal = normalized(sizes.view(1, *differences[0].shape[1:]), unit)
        self.directions = directions(deltas, gradients).float()
        even = self._parts(torch.cat(differences).float())
        self.directions *= (even[0] / even[1]).sqrt() if even[1] > 0 else 0.0

    def forward(self, difference: Tensor, images: Tensor) -> Tensor:
        """As ``OutputLoss``; whichever images they are."""
        diagonal, low_rank = self._parts(difference)
        return 0.5 * (diagonal + low_rank)

    def _parts(self, difference: Tensor) -> tuple[Tensor, Tensor]:
        """(Σ d·δ², ‖Vᵀδ‖²), each over as many positions as the output has."""
        diagonal, directions = self.diagonal.to(difference.device), self.directions.to(difference.device)
        positions = difference[0].numel() / difference.shape[self.channel_axis]
        low_rank = (difference.flatten(1) @ directions).square().sum(1).mean() / positions
        return self.average(difference.square() * diagonal), low_rank


def directions(deltas: Tensor, gradients: Tensor) -> Tensor:
    """V with VVᵀ = G(ΔᵀG)⁺Gᵀ, of the part of ΔᵀG that is symmetric and positive.

    Args:
        deltas: (k, N) float64, Δᵀ.
        gradients: (k, N) float64, Gᵀ.

    Returns:
        (N, k) float64; columns of zeros for what is left out.
    """
    product = deltas @ gradients.T
    values, vectors = torch.linalg.eigh((product + product.T) / 2.0)
    noise = torch.linalg.matrix_norm((product - product.T) / 2.0, 2)
    kept = values > torch.maximum(noise, values.abs().max() * 1e-9)
    found: Tensor = gradients.T @ (vectors * torch.where(kept, values.clamp_min(0.0).rsqrt(), 0.0))
    return found
