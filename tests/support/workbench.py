"""Timing for ratios: interleaved, the least of several, so that what else the machine does decides nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def least_seconds(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least that each took in ``rounds`` rounds, all of them in turn, after one that does not count."""
    for work in works.values():
        work()
    taken = [{name: seconds(work) for name, work in works.items()} for _ in range(rounds)]
    return {name: min(round_[name] for round_ in taken) for name in works}


def ratio(ours: Callable[[], object], base: Callable[[], object], rounds: int = 5) -> float:
    """min(ours) / min(base) over interleaved rounds."""
    least = least_seconds({"base": base, "ours": ours}, rounds)
    return least["ours"] / least["base"]
