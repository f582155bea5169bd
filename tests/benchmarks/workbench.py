"""Timing for ratios: interleaved, the least of several, so that what else the machine does decides nothing."""

from __future__ import annotations

import time
from collections.abc import Callable


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(ours: Callable[[], object], base: Callable[[], object], rounds: int = 5, good: float = 0.0) -> float:
    """min(ours) / min(base) over interleaved rounds, at most ``rounds``, fewer once it is at most ``good``."""
    base(), ours()
    least_base = least_ours = float("inf")
    for _ in range(rounds):
        least_base = min(least_base, seconds(base))
        least_ours = min(least_ours, seconds(ours))
    return least_ours / least_base
