"""Times of a run's stages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qplug.core.types import Advance

if TYPE_CHECKING:
    from qplug.hooks.caller import TechniqueCaller


class Clock:
    """Times the stages of a run and tells the observers.

    A cached result counts with the seconds that it once took, so that the times of two runs can be compared. ``saved``
    is the part of them that this run did not spend.
    """

    def __init__(self, caller: TechniqueCaller) -> None:
        self._caller = caller
        self._start = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.saved = 0.0

    @contextmanager
    def stage(self, name: str, total: int = 0) -> Iterator[Advance]:
        """Time one stage; it yields a function that is called with the units done so far."""
        self._caller.observe(name, "start", 0, total)
        start, saved = time.perf_counter(), self.saved

        def advance(done: int, note: str = "") -> None:
            self._caller.observe(name, "advance", done, total, note)

        try:
            yield advance
        finally:
            self.seconds[name] = time.perf_counter() - start + self.saved - saved
            self._caller.observe(name, "end", total, total)

    def save(self, seconds: float) -> None:
        """Add the seconds that a cached result once took."""
        self.saved += seconds

    @property
    def total(self) -> float:
        """Seconds since the run began, plus those that the cache saved."""
        return time.perf_counter() - self._start + self.saved
