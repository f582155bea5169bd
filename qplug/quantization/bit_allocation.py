"""Bits by integer programme: one width for each group, at the least total cost that keeps within limits."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qplug.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Places = NDArray[np.intp]

CORE = 300
"""Candidates beyond one a group with which the exact search begins; more where these do not prove the optimum."""
ROUNDING = 1e-9
"""Share of a limit by which a sum in float64 may pass it."""
ROUNDS = 10
"""Times that each of several prices is found beside the others."""
GAP = 1e-6
"""Share of the cost within which a choice counts as the optimum; HiGHS's own tolerance where the cost is about 1."""


@dataclass(frozen=True)
class Limit:
    """Σ over groups of load(group, bits of the group) ≤ bound.

    Attributes:
        name: what is limited, for errors.
        load: (group, bits) → what the group takes, in the unit of ``bound``; 0 where it takes no part.
        bound: positive.
    """

    name: str
    load: Callable[[str, int], float]
    bound: float


def choose_bits(costs: Mapping[str, Mapping[int, float]], limits: Sequence[Limit]) -> dict[str, int]:
    """The width of each group that minimizes Σ costs[group][bits] within every limit, to a millionth of the least sum.

    A multiple-choice knapsack, NP-hard but kind. Prices of the limits (Lagrange multipliers) bound from below what a
    choice with any one candidate in it must cost; ``scipy.optimize.milp`` searches the candidates that come near, and
    the others are out if what it finds is as near. So 10,000 groups under one limit take one or two seconds, where milp
    alone can take a minute.

    Args:
        costs: group → candidate bits → cost, finite, in any one unit.
        limits: at least one.

    Raises:
        InputError: a cost that is not finite, or limits within which there is no choice.
    """
    import numpy as np

    if not costs:
        return {}
    widths = sorted({bits for row in costs.values() for bits in row})
    cost = np.array([[row.get(bits, np.inf) for bits in widths] for row in costs.values()], dtype=np.float64)
    for group, row in costs.items():
        if not np.isfinite(list(row.values())).all():
            raise InputError(f"the costs must be finite, got {dict(row)}", where=group)
    load = np.array([[[limit.load(g, b) / limit.bound for b in widths] for g in costs] for limit in limits])
    least = np.where(np.isfinite(cost), load, np.inf).min(2).sum(1)
    for limit, share in zip(limits, least, strict=True):
        if share > 1.0 + ROUNDING:
            raise InputError(
                f"the candidates need at least {share * limit.bound:g}, and the limit is {limit.bound:g}",
                where=limit.name,
                fix="raise the limit, or offer fewer bits",
            )
    cost = np.where(_fit(cost, load), cost, np.inf)
    choice = _optimum(cost, load) if np.isfinite(cost).any(1).all() else None
    if choice is None:
        raise InputError(
            "each limit can be kept, but not all of them at once",
            where=", ".join(limit.name for limit in limits),
            fix="raise one of them, or offer fewer bits",
        )
    return {group: widths[place] for group, place in zip(costs, choice, strict=True)}


def _fit(cost: Floats, load: Floats) -> NDArray[np.bool_]:
    """(groups, widths): which fit where every other group takes its least of each limit.

    Where a limit is just what the least needs, ``milp``'s tolerances cannot tell small loads from none.
    """
    import numpy as np

    least = np.where(np.isfinite(cost), load, np.inf).min(2)
    slack = 1.0 + ROUNDING - least.sum(1)
    fits: NDArray[np.bool_] = (load - least[:, :, None] <= slack[:, None, None]).all(0)
    return fits


def _optimum(cost: Floats, load: Floats) -> Places | None:
    """The place of each group's width; ``None`` where nothing keeps within the limits, which are all 1.

    Args:
        cost: (groups, widths), +inf where a group lacks a width.
        load: (limits, groups, widths).
    """
    import numpy as np

    unit = float(np.abs(cost[np.isfinite(cost)]).max()) or 1.0
    prices = _prices(cost, load, unit)
    priced = cost + np.tensordot(prices, load, 1)
    lowest = priced.min(1, keepdims=True)
    extra, bound = priced - lowest, float(lowest.sum() - prices.sum())
    ascending = np.sort(extra[np.isfinite(extra)])
    near, most = float(ascending[min(len(cost) + CORE, len(ascending)) - 1]), float(ascending[-1])
    unit = bound if bound > 0.0 else unit
    while True:
        choice = _search(cost, load, extra <= near, unit)
        total = np.inf if choice is None else float(cost[np.arange(len(cost)), choice].sum())
        if near >= min(total - bound, most) or total - bound <= GAP * unit:
            return choice
        near = min(most, total - bound)


def _prices(cost: Floats, load: Floats, unit: float) -> Floats:
    """A price for each limit at which the cheapest widths just keep within it: by bisection, one after the other."""
    import numpy as np

    prices, rows = np.zeros(len(load)), np.arange(len(cost))

    def exceeds(limit: int, price: float) -> bool:
        prices[limit] = price
        choice = (cost + np.tensordot(prices, load, 1)).argmin(1)
        return bool(load[limit, rows, choice].sum() > 1.0 + ROUNDING)

    for limit in [*range(len(load))] * (1 if len(load) == 1 else ROUNDS):
        low, high = 0.0, unit
        while exceeds(limit, high) and high < np.finfo(np.float64).max / 16:
            low, high = high, high * 16
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if exceeds(limit, middle) else (low, middle)
        prices[limit] = high
    return prices


def _search(cost: Floats, load: Floats, candidate: NDArray[np.bool_], unit: float) -> Places | None:
    """The optimum among candidates, by ``milp`` over the groups that have more than one.

    HiGHS's tolerances are 1e-6 in absolute terms: so costs are given in units of ``unit``, about what all of it costs,
    and loads in units of the largest; and a limit that is passed all the same is lowered by as much, and tried again.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    choice: Places = np.where(candidate, cost, np.inf).argmin(1)
    open_ = candidate.sum(1) > 1
    left = 1.0 - load[:, ~open_, choice[~open_]].sum(1)
    if not open_.any():
        return choice if (left >= -ROUNDING).all() else None
    group, place = np.nonzero(candidate & open_[:, None])
    values, weights = cost[group, place] / unit, load[:, group, place]
    largest = np.maximum(weights.max(1, keepdims=True), np.finfo(np.float64).tiny)
    each = csr_array((np.ones(len(group)), (np.unique(group, return_inverse=True)[1], np.arange(len(group)))))
    allowed = left
    while True:
        within = LinearConstraint(weights / largest, -np.inf, allowed / largest[:, 0])
        with _silence():
            found = milp(
                values,
                integrality=np.ones(len(group)),
                bounds=Bounds(0, 1),
                constraints=[LinearConstraint(each, 1, 1), within],
                options={"mip_rel_gap": 0.0},
            )
        if found.x is None:
            return None
        taken = found.x > 0.5
        choice[group[taken]] = place[taken]
        over = weights[:, taken].sum(1) - left
        if (over <= ROUNDING).all():
            return choice
        allowed = allowed - 2.0 * over.clip(0.0)


@contextmanager
def _silence() -> Iterator[None]:
    """Standard output leads nowhere: the HiGHS of scipy 1.17 prints a forgotten line, which would spoil ``--json``.

    It does so in C, where only the file descriptor can be turned; what C holds back is flushed on both sides.
    """
    flush = ctypes.CDLL(None).fflush
    flush(None)
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output to spoil
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
        flush(None)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
