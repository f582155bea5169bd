"""The one-dimensional search that range estimators share: coarse on a geometric grid, then fine around its best."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qplug.core.types import Granularity
from qplug.quantization.calibration.statistics import SiteStats
from qplug.quantization.quantizers.base import Quantizer
from qplug.quantization.quantizers.grid import Objective, best_of


def line_search(
    stats: SiteStats,
    quantizer: Callable[[Tensor], Quantizer],
    *,
    granularity: Granularity = Granularity.PER_TENSOR,
    objective: Objective = "output",
    low: float = 0.02,
    high: float = 1.2,
    candidates: int = 24,
    refine: int = 8,
) -> tuple[Tensor, Tensor]:
    """The factor in [low, high] that loses least, for each scale on its own where their errors separate.

    Args:
        stats: the site.
        quantizer: factor (0-dim, or in the shape of the scales) → the quantizer to try.
        granularity: which scales choose on their own.
        objective: see ``Objective``.
        low, high: bounds of the factor, without unit.
        candidates: coarse candidates, geometrically spaced.
        refine: fine candidates between the best one's neighbours.

    Returns:
        The best factor and its error, both () or in the shape of the scales.

    PTQ4ViT spaces 100 candidates evenly; a geometric grid with refinement resolves small factors as well as large ones
    for a third of the evaluations [ours].
    """
    ratio = (high / low) ** (1 / max(1, candidates - 1))

    def best(factors: list[Tensor]) -> tuple[Tensor, Tensor]:
        tried = [quantizer(factor) for factor in factors]
        place, least = best_of(stats, tried, granularity=granularity, objective=objective)
        rows = torch.stack([factor.expand_as(least) for factor in factors])
        return rows.gather(0, place.unsqueeze(0)).squeeze(0), least

    coarse = [high, *(low * ratio**step for step in range(candidates - 1))]
    factor, least = best([torch.tensor(value, device=stats.sample.device) for value in coarse])
    if not refine:
        return factor, least
    places = [2.0 * (step + 1) / (refine + 1) - 1.0 for step in range(refine)]
    finer, error = best([(factor * ratio**place).clamp(low, high) for place in places])
    better = error < least
    return torch.where(better, finer, factor), torch.where(better, error, least)
