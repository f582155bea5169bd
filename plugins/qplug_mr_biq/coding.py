"""Binary coding of the rows of a matrix, w ≈ Σ alpha_i·b_i with b_i in {−1, +1}: codes, levels, and the alternation.

A code of q bits is the integer 0 … 2^q − 1 whose most significant bit is that of b_1; a set bit is +1. A *basis*,
(2^q, p), says what each code stands for: code c of row r has the level Σ_j scales[r, j]·basis[c, j]. That of ``signs``
is Mr.BiQ's, one alpha a bit; that of ``grid`` is Mr.BiQ-Uniform's, alpha_i = 2·alpha_{i+1}.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qplug_mr_biq.rows import SortedRows, between, least_squares, sums_by_code

ROUNDS = 100
"""Alternations at most; a few rows of a layer at 4 bits need more than 50."""
GAIN = 1e-9
"""Share of its squared error by which a row must improve to be alternated again."""


def signs(bits: int) -> Tensor:
    """(2^bits, bits) float64, ±1: the b of every code."""
    places = torch.arange(bits - 1, -1, -1)
    return ((torch.arange(1 << bits).unsqueeze(1) >> places) & 1).double().mul_(2.0).sub_(1.0)


def powers(bits: int) -> Tensor:
    """(bits,) float64, 2^(bits − i): the alphas of a uniform grid whose last one is 1."""
    return torch.exp2(torch.arange(bits - 1, -1, -1, dtype=torch.float64))


def grid(bits: int, offset: bool) -> Tensor:
    """(2^bits, 1 or 2) float64: Σ 2^(bits − i)·b_i, the odd integers of a uniform grid, and with ``offset`` ones."""
    odd = signs(bits) @ powers(bits)
    return torch.stack([odd, torch.ones_like(odd)], 1) if offset else odd.unsqueeze(1)


def level_values(scales: Tensor, basis: Tensor) -> Tensor:
    """(rows, p) × (2^q, p), one dtype → (rows, 2^q) the level of every code.

    Summed column by column instead of by a matrix product, so that the same scales give the same bits at every batch
    size and on every device.
    """
    values = scales[:, :1] * basis[:, 0]
    for j in range(1, basis.shape[1]):
        values = values + scales[:, j : j + 1] * basis[:, j]
    return values


def nearest(w: Tensor, levels: Tensor) -> Tensor:
    """(rows, n), (rows, 2^q), one dtype → (rows, n) int64, the code of the nearest level; a tie takes the lower one.

    A value that is a level gets a code of exactly that level, also where levels coincide or are neighbouring floats.
    """
    ordered, codes = levels.sort(dim=1, stable=True)
    return codes.gather(1, torch.searchsorted(between(ordered), w.contiguous()))


def greedy(w: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Residual sign coding: b_i = sign(r_{i−1}), alpha_i = mean|r_{i−1}|, r_i = r_{i−1} − alpha_i·b_i, r_0 = w.

    Args:
        w: (rows, n) float.
        bits: q.

    Returns:
        alphas (rows, q) in w's dtype, none negative, and codes (rows, n) int64: those of the residuals, which from
        3 bits on need not be those of the nearest sums.
    """
    rest, alphas, codes = w, [], torch.zeros(w.shape, dtype=torch.int64, device=w.device)
    for _ in range(bits):
        positive = rest >= 0
        alphas.append(rest.abs().mean(1, keepdim=True))
        rest = rest - torch.where(positive, alphas[-1], -alphas[-1])
        codes = codes * 2 + positive
    return torch.cat(alphas, 1), codes


def alternate(w: Tensor, scales: Tensor, codes: Tensor, basis: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """In turn, scales = least squares given the codes and codes = the nearest levels, until the error stays.

    Where codes make the system singular (every bit the same, bits that coincide, a single weight), the shortest of its
    solutions is taken. Rows are independent, and each keeps the best scales that it had, those of the start included:
    none ends above its start. At most ``ROUNDS`` rounds.

    Args:
        w: (rows, n) float.
        scales: (rows, p) of the start.
        codes: (rows, n) int64 of the start.
        basis: (2^q, p) float64; ``signs(p)``, one alpha a bit, by default.

    Returns:
        scales (rows, p) in w's dtype, and the codes (rows, n) of their nearest levels.
    """
    basis = (signs(scales.shape[1]) if basis is None else basis).to(w.device)
    rows, best = SortedRows(w), scales.double()
    error = rows.split(level_values(best, basis))[2]
    counts, totals = sums_by_code(w.double(), codes, len(basis))
    active = torch.arange(len(w), device=w.device)
    for _ in range(ROUNDS):
        found = least_squares(counts, totals, basis)
        counts, totals, now = rows.take(active).split(level_values(found, basis))
        better = now < error[active] * (1.0 - GAIN)
        active, counts, totals = active[better], counts[better], totals[better]
        if not len(active):
            break
        best[active], error[active] = found[better], now[better]
    made = best.to(w.dtype)
    return made, nearest(w, level_values(made, basis.to(w.dtype)))
