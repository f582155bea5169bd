"""The best of a list of candidates, found without evaluating all of each: what every search of the house ends in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from qplug.core.types import Granularity
from qplug.quantization.calibration.statistics import SiteStats
from qplug.quantization.quantizers.base import Quantizer

PARTS = 5

Objective = Literal["output", "value", "cosine"]
"""What a search minimizes: ``output`` is the Hessian-guided error of the operation (PTQ4ViT), ``value`` the squared
error of the tensor itself, ``cosine`` the cosine distance of the operation's output (EasyQuant)."""


def evenly(low: float, high: float, count: int) -> list[float]:
    """low + i·(high − low)/count for i = 0 … count − 1, the grid of PTQ4ViT and EasyQuant: ``high`` is not in it."""
    return [low + i * (high - low) / count for i in range(count)]


def grid_search(
    stats: SiteStats,
    quantizer: Callable[[float], Quantizer],
    factors: Sequence[float],
    *,
    granularity: Granularity = Granularity.PER_TENSOR,
    objective: Objective = "output",
    groups: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The factor that loses least, the first of equals, for each scale on its own where their errors separate.

    The exhaustive search that papers print, at about a quarter of its work: see ``best_of``.

    Args:
        stats: the site.
        quantizer: factor → the quantizer to try.
        factors: the candidates, any numbers that mean something to ``quantizer``.
        granularity: which scales choose on their own.
        objective: see ``Objective``.
        groups: neighbouring scales choose together, by the sum of their errors, in this many groups of one size.

    Returns:
        The best factor and its error, both () or in the shape of the scales.
    """
    candidates = [quantizer(factor) for factor in factors]
    place, least = best_of(stats, candidates, granularity=granularity, objective=objective, groups=groups)
    return torch.tensor(factors, device=place.device)[place], least


def best_of(
    stats: SiteStats,
    candidates: Sequence[Quantizer],
    *,
    granularity: Granularity = Granularity.PER_TENSOR,
    objective: Objective = "output",
    groups: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Which candidate loses least, the first of equals, and its error; arguments and shapes as ``grid_search``'s.

    Squares only add up: a candidate is given up as soon as its error on the rows seen so far exceeds, for every scale,
    the least of those seen whole. The rows that weigh most come first, and so do the candidates that lose least on
    them, which leaves about a quarter of the work. But for the order in which float32 is summed, nothing changes. Only
    the errors of outputs are found in parts: cosines do not add up, and those of values cost little.
    """
    distances = {
        "output": SiteStats.output_error,
        "value": SiteStats.value_error,
        "cosine": SiteStats.cosine_distance,
    }

    def error_of(part: SiteStats, candidate: Quantizer) -> Tensor:
        error = distances[objective](part, candidate.infer(part.sample), granularity)
        if groups is None:
            return error
        return error.view(groups, -1, *error.shape[1:]).sum(1).repeat_interleave(len(error) // groups, 0)

    candidates = [candidate.to(stats.sample.device) for candidate in candidates]
    if objective == "output" and len(candidates) > 1:
        errors = _pruned(stats, candidates, error_of)
    else:
        errors = [error_of(stats, candidate) for candidate in candidates]
    least, place = torch.stack(errors).min(0)
    return place, least


def _pruned(
    stats: SiteStats, candidates: Sequence[Quantizer], error_of: Callable[[SiteStats, Quantizer], Tensor]
) -> list[Tensor]:
    """Each candidate's error; infinite where it cannot be the least of any scale."""
    first, *rest = _parts(stats, candidates[len(candidates) // 2])
    begun = [error_of(first, candidate) for candidate in candidates]
    least = torch.full_like(begun[0], torch.inf)
    errors = [least] * len(candidates)
    for i in torch.stack([error.sum() for error in begun]).argsort(stable=True).tolist():
        total = begun[i]
        for part in rest:
            if bool((total > least).all()):
                break
            total = total + error_of(part, candidates[i])
        else:
            errors[i] = total
            least = torch.minimum(least, total)
    return errors


def _parts(stats: SiteStats, quantizer: Quantizer) -> list[SiteStats]:
    """The sample cut in parts, first the rows that ``quantizer`` hurts most, each as long as all before it."""
    rows = stats.row_errors(quantizer.infer(stats.sample)).argsort(descending=True, stable=True)
    cuts = sorted({len(rows) >> k for k in range(1, PARTS)} - {0})
    return [stats.take(part) for part in rows.tensor_split(cuts)]
