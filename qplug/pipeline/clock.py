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

    All times are wall times.

    Attributes:
        seconds: of each stage.
        saved: seconds that the cache saved: what its results once took to compute.
        saved_by_stage: the same by stage, where it saved any.
    """

    def __init__(self, caller: TechniqueCaller) -> None:
        self._caller = caller
        self._start = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.saved = 0.0
        self.saved_by_stage: dict[str, float] = {}

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
            self.seconds[name] = time.perf_counter() - start
            if self.saved > saved:
                self.saved_by_stage[name] = self.saved - saved
            self._caller.observe(name, "end", total, total)

    def save(self, seconds: float) -> None:
        """Add the seconds that a cached result once took."""
        self.saved += seconds

    @property
    def total(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._start
