"""The exhaustive search that papers print: the best of a list of candidates, found without evaluating all of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from qplug.quantizers.base import Quantizer
from qplug.stats import SiteStats
from qplug.types import Granularity

PARTS = 5


def evenly(low: float, high: float, count: int) -> list[float]:
    """low + i·(high − low)/count for i = 0 … count − 1, the grid of PTQ4ViT and EasyQuant: ``high`` is not in it."""
    return [low + i * (high - low) / count for i in range(count)]


def grid_search(
    stats: SiteStats,
    quantizer: Callable[[float], Quantizer],
    factors: Sequence[float],
    *,
    granularity: Granularity = Granularity.PER_TENSOR,
    objective: Literal["output", "cosine"] = "output",
    groups: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The factor that loses least, the first of equals, for each scale on its own where their errors separate.

    Squares only add up: a candidate is given up as soon as its error on the rows seen so far exceeds, for every scale,
    the least of those seen whole. The rows that weigh most come first, and so do the candidates that lose least on
    them, which leaves about a quarter of the work. But for the order in which float32 is summed, nothing changes.

    Args:
        stats: the site.
        quantizer: factor → the quantizer to try.
        factors: the candidates, any numbers that mean something to ``quantizer``.
        granularity: which scales choose on their own.
        objective: ``output`` is the Hessian-guided error of the operation (PTQ4ViT), ``cosine`` the cosine distance of
            its output (EasyQuant), which does not add up over rows and is always computed whole.
        groups: neighbouring scales choose together, by the sum of their errors, in this many groups of one size.

    Returns:
        The best factor and its error, both () or in the shape of the scales.
    """

    def error_of(part: SiteStats, candidate: Quantizer) -> Tensor:
        quantized = candidate.infer(part.sample)
        distance = part.cosine_distance if objective == "cosine" else part.output_error
        error = distance(quantized, granularity)
        if groups is None:
            return error
        return error.view(groups, -1, *error.shape[1:]).sum(1).repeat_interleave(len(error) // groups, 0)

    candidates = [quantizer(factor).to(stats.sample.device) for factor in factors]
    if objective == "cosine":
        errors = [error_of(stats, candidate) for candidate in candidates]
    else:
        errors = _pruned(stats, candidates, error_of)
    least, place = torch.stack(errors).min(0)
    return torch.tensor(factors, device=place.device)[place], least


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
