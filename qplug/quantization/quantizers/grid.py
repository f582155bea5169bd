"""Search for the best quantizer in a list of candidates, with pruning; all other searches use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from qplug.core.types import Granularity
from qplug.quantization.calibration.statistics import SiteStats
from qplug.quantization.quantizers.base import Quantizer

SAMPLE_PARTS = 5
"""Parts of a sample in a pruned search."""

SearchObjective = Literal["output", "value", "cosine"]
"""The minimized error of a search.

- ``output``: the Hessian-guided error of the operation's output (PTQ4ViT).
- ``value``: the squared error of the tensor itself.
- ``cosine``: the cosine distance of the operation's output (EasyQuant).
"""


def evenly(low: float, high: float, count: int) -> list[float]:
    """low + i·(high − low)/count for i = 0 … count − 1, without ``high``: the grid of PTQ4ViT and EasyQuant."""
    return [low + i * (high - low) / count for i in range(count)]


def grid_search(
    stats: SiteStats,
    quantizer: Callable[[float], Quantizer],
    factors: Sequence[float],
    *,
    granularity: Granularity = Granularity.PER_TENSOR,
    objective: SearchObjective = "output",
    groups: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The factor with the least error, the first one of equals; each scale has its own factor if errors separate.

    The result is the result of the exhaustive search in papers, at about a quarter of its cost; see ``best_of``.

    Args:
        stats: statistics of the site.
        quantizer: factor → candidate quantizer.
        factors: the candidates, as arguments of ``quantizer``.
        granularity: which scales have their own factors.
        objective: see ``SearchObjective``.
        groups: number of equally large groups of neighbouring scales; a group has one factor, by the sum of errors.

    Returns:
        The best factor and its error, both () or in the shape of the scales.
    """
    candidates = [quantizer(factor) for factor in factors]
    index, least = best_of(stats, candidates, granularity=granularity, objective=objective, groups=groups)
    return torch.tensor(factors, device=index.device)[index], least


def best_of(
    stats: SiteStats,
    candidates: Sequence[Quantizer],
    *,
    granularity: Granularity = Granularity.PER_TENSOR,
    objective: SearchObjective = "output",
    groups: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The index of the candidate with the least error, the first one of equals, and its error.

    Arguments and shapes are those of ``grid_search``. Squared errors only grow with the number of rows. A candidate is
    therefore dropped when its error on the rows so far exceeds, for every scale, the least complete error. Rows with
    large errors come first, and so do the candidates with the least errors on them; about a quarter of the work
    remains. The result differs from the exhaustive search only by the order of float32 sums. Only ``output`` is pruned:
    cosines do not add up, and ``value`` is cheap.
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
    least, index = torch.stack(errors).min(0)
    return index, least


def _pruned(
    stats: SiteStats, candidates: Sequence[Quantizer], error_of: Callable[[SiteStats, Quantizer], Tensor]
) -> list[Tensor]:
    """The error of each candidate; infinite for candidates that are not the best for any scale."""
    first, *rest = _sample_parts(stats, candidates[len(candidates) // 2])
    partial = [error_of(first, candidate) for candidate in candidates]
    least = torch.full_like(partial[0], torch.inf)
    errors = [least] * len(candidates)
    for i in torch.stack([error.sum() for error in partial]).argsort(stable=True).tolist():
        total = partial[i]
        for part in rest:
            if bool((total > least).all()):
                break
            total = total + error_of(part, candidates[i])
        else:
            errors[i] = total
            least = torch.minimum(least, total)
    return errors


def _sample_parts(stats: SiteStats, quantizer: Quantizer) -> list[SiteStats]:
    """The sample in parts, in descending order of the rows' errors with ``quantizer``.

    Each part is as long as all parts before it together.
    """
    rows = stats.row_errors(quantizer.infer(stats.sample)).argsort(descending=True, stable=True)
    cuts = sorted({len(rows) >> k for k in range(1, SAMPLE_PARTS)} - {0})
    return [stats.select_rows(part) for part in rows.tensor_split(cuts)]
