"""Bit allocation by integer programming: one width per group, at the least total cost within limits."""

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
    Indices = NDArray[np.intp]

EXTRA_CANDIDATES = 300
"""Candidates, in addition to one per group, of the first exact search; later searches add more if necessary."""
LIMIT_TOLERANCE = 1e-9
"""Share of a limit by which a float64 sum may exceed it."""
PRICE_ROUNDS = 10
"""Rounds of coordinate-wise bisection for the prices of several limits."""
OPTIMALITY_GAP = 1e-6
"""Relative difference of cost within which a choice counts as optimal; it is HiGHS's tolerance at a cost of 1."""


@dataclass(frozen=True)
class Limit:
    """Σ over groups of load(group, bits of the group) ≤ bound.

    Attributes:
        name: the limited quantity, for errors.
        load: (group, bits) → the group's load in the unit of ``bound``; 0 if the limit does not apply to the group.
        bound: the largest sum of loads, positive.
    """

    name: str
    load: Callable[[str, int], float]
    bound: float


def choose_bits(costs: Mapping[str, Mapping[int, float]], limits: Sequence[Limit]) -> dict[str, int]:
    """The width of each group that minimizes Σ costs[group][bits] within every limit, to a millionth of the least sum.

    The problem is a multiple-choice knapsack: NP-hard in general, but easy in practice. Prices of the limits (Lagrange
    multipliers) give a lower bound for the cost of every choice that contains a candidate. ``scipy.optimize.milp``
    searches the candidates with the smallest bounds. A candidate is excluded if its bound exceeds the best cost so far.
    10,000 groups under one limit take one or two seconds; milp alone can take a minute.

    Args:
        costs: group → candidate bits → cost, finite, in one common unit.
        limits: at least one limit.

    Raises:
        InputError: a cost is not finite, or no choice satisfies all limits.
    """
    import numpy as np

    if not costs:
        return {}
    widths = sorted({bits for row in costs.values() for bits in row})
    cost = np.array([[row.get(bits, np.inf) for bits in widths] for row in costs.values()], dtype=np.float64)
    for group, row in costs.items():
        if not np.isfinite(list(row.values())).all():
            raise InputError(f"expected finite costs, received {dict(row)}", where=group)
    load = np.array([[[limit.load(g, b) / limit.bound for b in widths] for g in costs] for limit in limits])
    least = np.where(np.isfinite(cost), load, np.inf).min(2).sum(1)
    for limit, share in zip(limits, least, strict=True):
        if share > 1.0 + LIMIT_TOLERANCE:
            raise InputError(
                f"the candidates need at least {share * limit.bound:g}, and the limit is {limit.bound:g}",
                where=limit.name,
                fix="raise the limit, or offer fewer bits",
            )
    cost = np.where(_feasible_candidates(cost, load), cost, np.inf)
    choice = _optimum(cost, load) if np.isfinite(cost).any(1).all() else None
    if choice is None:
        raise InputError(
            "the candidates can satisfy each limit alone, but not all of them at once",
            where=", ".join(limit.name for limit in limits),
            fix="raise one of the limits, or offer fewer bits",
        )
    return {group: widths[index] for group, index in zip(costs, choice, strict=True)}


def _feasible_candidates(cost: Floats, load: Floats) -> NDArray[np.bool_]:
    """(groups, widths): the candidates that satisfy every limit if all other groups have their least loads.

    Without this selection, ``milp``'s tolerances do not distinguish small loads from none if a limit leaves no slack.
    """
    import numpy as np

    least = np.where(np.isfinite(cost), load, np.inf).min(2)
    slack = 1.0 + LIMIT_TOLERANCE - least.sum(1)
    feasible: NDArray[np.bool_] = (load - least[:, :, None] <= slack[:, None, None]).all(0)
    return feasible


def _optimum(cost: Floats, load: Floats) -> Indices | None:
    """The index of each group's width; ``None`` if no choice satisfies the limits. All limits are 1.

    Args:
        cost: (groups, widths), +inf for the widths that a group does not offer.
        load: (limits, groups, widths).
    """
    import numpy as np

    unit = float(np.abs(cost[np.isfinite(cost)]).max()) or 1.0
    prices = _prices(cost, load, unit)
    priced = cost + np.tensordot(prices, load, 1)
    lowest = priced.min(1, keepdims=True)
    extra, bound = priced - lowest, float(lowest.sum() - prices.sum())
    ascending = np.sort(extra[np.isfinite(extra)])
    near, most = float(ascending[min(len(cost) + EXTRA_CANDIDATES, len(ascending)) - 1]), float(ascending[-1])
    unit = bound if bound > 0.0 else unit
    while True:
        choice = _search(cost, load, extra <= near, unit)
        total = np.inf if choice is None else float(cost[np.arange(len(cost)), choice].sum())
        if near >= min(total - bound, most) or total - bound <= OPTIMALITY_GAP * unit:
            return choice
        near = min(most, total - bound)


def _prices(cost: Floats, load: Floats, unit: float) -> Floats:
    """The least price for each limit at which the cheapest widths satisfy it, by bisection of one price at a time."""
    import numpy as np

    prices, rows = np.zeros(len(load)), np.arange(len(cost))

    def exceeds(limit: int, price: float) -> bool:
        prices[limit] = price
        choice = (cost + np.tensordot(prices, load, 1)).argmin(1)
        return bool(load[limit, rows, choice].sum() > 1.0 + LIMIT_TOLERANCE)

    for limit in [*range(len(load))] * (1 if len(load) == 1 else PRICE_ROUNDS):
        low, high = 0.0, unit
        while exceeds(limit, high) and high < np.finfo(np.float64).max / 16:
            low, high = high, high * 16
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if exceeds(limit, middle) else (low, middle)
        prices[limit] = high
    return prices


def _search(cost: Floats, load: Floats, candidate: NDArray[np.bool_], unit: float) -> Indices | None:
    """The optimum among the candidates, by ``milp`` over the groups that have more than one.

    HiGHS's tolerances are absolute, 1e-6. Costs are therefore divided by ``unit``, about the total cost, and loads by
    the largest load. If the result exceeds a limit nevertheless, the limit is lowered by twice the excess, and the
    search is repeated.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    choice: Indices = np.where(candidate, cost, np.inf).argmin(1)
    undecided = candidate.sum(1) > 1
    remaining = 1.0 - load[:, ~undecided, choice[~undecided]].sum(1)
    if not undecided.any():
        return choice if (remaining >= -LIMIT_TOLERANCE).all() else None
    group, index = np.nonzero(candidate & undecided[:, None])
    values, weights = cost[group, index] / unit, load[:, group, index]
    largest = np.maximum(weights.max(1, keepdims=True), np.finfo(np.float64).tiny)
    one_per_group = csr_array((np.ones(len(group)), (np.unique(group, return_inverse=True)[1], np.arange(len(group)))))
    allowed = remaining
    while True:
        limits = LinearConstraint(weights / largest, -np.inf, allowed / largest[:, 0])
        with _silent_stdout():
            solution = milp(
                values,
                integrality=np.ones(len(group)),
                bounds=Bounds(0, 1),
                constraints=[LinearConstraint(one_per_group, 1, 1), limits],
                options={"mip_rel_gap": 0.0},
            )
        if solution.x is None:
            return None
        selected = solution.x > 0.5
        choice[group[selected]] = index[selected]
        excess = weights[:, selected].sum(1) - remaining
        if (excess <= LIMIT_TOLERANCE).all():
            return choice
        allowed = allowed - 2.0 * excess.clip(0.0)


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """A context that discards standard output: HiGHS in scipy 1.17 prints a debug line, which would corrupt ``--json``.

    HiGHS prints from C, so the file descriptor is redirected. C's buffers are flushed before and after.
    """
    flush = ctypes.CDLL(None).fflush
    flush(None)
    try:
        stdout = os.dup(1)
    except OSError:  # the process has no standard output
        yield
        return
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 1)
        yield
        flush(None)
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
