"""Binary coding of the rows of a matrix, w ≈ Σ alpha_i·b_i with b_i in {−1, +1}: codes, levels, greedy coding.

A code of q bits is the integer 0 … 2^q − 1 whose most significant bit is that of b_1; a set bit is +1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from qplug_plugins.mr_biq.rows import between
from torch import Tensor


@dataclass(frozen=True)
class Format:
    """The map from the codes of a row to levels, given its scales.

    Attributes:
        bits: q, at least 1.
        uniform: alpha_i = 2·alpha_{i+1} (Mr.BiQ-Uniform): a row has only its last alpha; otherwise q of them.
        offset: whether a row has one more scale, which is added to every level.
    """

    bits: int
    uniform: bool = False
    offset: bool = False

    def basis(self) -> Tensor:
        """(2^q, p) float64: the level of code c is Σ_j scales[j]·basis[c, j]."""
        b = signs(self.bits)
        columns = (b @ powers(self.bits)).unsqueeze(1) if self.uniform else b
        return torch.cat([columns, torch.ones(len(b), 1, dtype=b.dtype)], 1) if self.offset else columns

    def ordered(self, scales: Tensor) -> tuple[Tensor, Tensor | None]:
        """(rows, p) → (rows, 2^q) ascending levels and their codes; ``None`` if codes equal the indices of levels.

        Levels of signs are symmetric, so only half of them are sorted.
        """
        alphas = scales[:, :-1] if self.offset else scales
        if self.uniform:
            levels, codes = sums(alphas.abs() * powers(self.bits).to(alphas)), None
        else:
            half = 1 << (self.bits - 1)
            upper = sums(alphas)[:, half:]
            sizes, places = upper.abs().sort(dim=1, stable=True)
            codes = torch.where(upper.gather(1, places) >= 0.0, half + places, half - 1 - places)
            levels = torch.cat([-sizes.flip(1), sizes], 1)
            codes = torch.cat([(2 * half - 1 - codes).flip(1), codes], 1)
        return (levels + scales[:, -1:] if self.offset else levels), codes


def signs(bits: int) -> Tensor:
    """(2^bits, bits) float64, ±1: the b of every code."""
    places = torch.arange(bits - 1, -1, -1)
    return ((torch.arange(1 << bits).unsqueeze(1) >> places) & 1).double().mul_(2.0).sub_(1.0)


def powers(bits: int) -> Tensor:
    """(bits,) float64, 2^(bits − i): the alphas of a uniform grid whose last one is 1."""
    return torch.exp2(torch.arange(bits - 1, -1, -1, dtype=torch.float64))


def sums(alphas: Tensor) -> Tensor:
    """(rows, q) → (rows, 2^q) Σ alpha_i·b_i of every code.

    The sum runs from the first to the last alpha, without a matrix product. Equal alphas thus give bit-identical sums
    at every batch size and on every device. The sum of a code is the negative of its complement's.
    """
    values = torch.cat([-alphas[:, :1], alphas[:, :1]], 1)
    for j in range(1, alphas.shape[1]):
        alpha = alphas[:, j : j + 1]
        values = torch.stack([values - alpha, values + alpha], 2).flatten(1)
    return values


def nearest(w: Tensor, levels: Tensor) -> Tensor:
    """(rows, n), (rows, 2^q), one dtype → (rows, n) int64, the code of the nearest level; the lower one in a tie.

    A value that equals a level gets a code of this level, even if levels are equal or neighbouring floats.
    """
    ordered, codes = levels.sort(dim=1, stable=True)
    return codes.gather(1, torch.searchsorted(between(ordered), w.contiguous()))


def greedy(w: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Residual sign coding: b_i = sign(r_{i−1}), alpha_i = mean|r_{i−1}|, r_i = r_{i−1} − alpha_i·b_i, r_0 = w.

    Args:
        w: (rows, n) float.
        bits: q.

    Returns:
        alphas (rows, q) in w's dtype, none negative, and codes (rows, n) int64 of the residuals. From 3 bits on, these
        may differ from the codes of the nearest sums.
    """
    rest, alphas, codes = w, [], torch.zeros(w.shape, dtype=torch.int64, device=w.device)
    for _ in range(bits):
        positive = rest >= 0
        alphas.append(rest.abs().mean(1, keepdim=True))
        rest = rest - torch.where(positive, alphas[-1], -alphas[-1])
        codes = codes * 2 + positive
    return torch.cat(alphas, 1), codes
