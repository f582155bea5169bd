"""Classification by the nearest neighbours of a feature vector in a bank of labelled features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = 20
"""Neighbours that vote, at most."""
TEMPERATURE = 0.07
"""Divisor of the cosine in the weight of a vote."""
ROWS = 1024
"""Vectors that are compared with the bank at a time."""


@dataclass(frozen=True, eq=False)
class Bank:
    """Labelled features.

    Attributes:
        vectors: (M, C) float32.
        labels: (M,) int64, at least 0.
        apart: whether the vectors are those to be classified themselves, in the same order, so that none may be a
            neighbour of its own (leave-one-out).
    """

    vectors: Tensor
    labels: Tensor
    apart: bool = False

    @property
    def neighbours(self) -> int:
        """The number of votes: ``NEIGHBOURS``, or fewer in a small bank; 0 in a bank of one vector that is apart."""
        return min(NEIGHBOURS, len(self.vectors) - self.apart)


def nearest_classes(vectors: Tensor, bank: Bank) -> Tensor:
    """(N,) int64: the class with the most votes of the nearest neighbours by cosine.

    A vote of a neighbour with cosine s weighs exp(s/0.07), and 20 neighbours vote: the protocol of Wu et al. 2018
    (arXiv:1805.01978) and of DINO (Caron et al. 2021). Without a neighbour, the class is −1.

    Args:
        vectors: (N, C).
        bank: the labelled features.
    """
    votes, count = bank.neighbours, int(bank.labels.max()) + 1 if len(bank.labels) else 0
    if votes < 1:
        return torch.full((len(vectors),), -1)
    known, found = F.normalize(bank.vectors.float(), dim=-1), []
    for start in range(0, len(vectors), ROWS):
        cosines = F.normalize(vectors[start : start + ROWS].float(), dim=-1) @ known.T
        if bank.apart:
            rows = torch.arange(len(cosines))
            cosines[rows, rows + start] = -torch.inf
        near, index = cosines.topk(votes, dim=-1)
        weights = torch.zeros(len(cosines), count).scatter_add_(
            1, bank.labels[index], ((near - near[:, :1]) / TEMPERATURE).exp()
        )
        found.append(weights.argmax(-1))
    return torch.cat(found)
