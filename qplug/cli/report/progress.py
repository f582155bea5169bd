"""Progress of a run on stderr: bars on a terminal, else one line for each stage longer than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from qplug.core.text import escaped
from qplug.core.types import Event
from qplug.hooks.specs import hookimpl

if TYPE_CHECKING:
    from rich.progress import Progress as Bars, TaskID

SHORTEST_STAGE = 1.0
"""Seconds; a shorter stage gets no line in a pipe."""


@contextmanager
def loading(stream: TextIO) -> Iterator[None]:
    """Say on a terminal that torch is being imported, which takes seconds; the line disappears afterwards."""
    tell = "torch" not in sys.modules and stream.isatty()
    if tell:
        stream.write("loading torch …")
        stream.flush()
    try:
        yield
    finally:
        if tell:
            stream.write("\r\x1b[2K")
            stream.flush()


class Progress:
    """Observer of a run, and context manager: the bars disappear when the context ends."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._started: dict[str, float] = {}
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Progress:
        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description:<22}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[count]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            self._bars = Progress(*columns, console=Console(file=self.stream), transient=True)
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    @hookimpl
    def qplug_observe(self, event: Event) -> None:
        """Draw a stage that starts, advances or ends."""
        if event.phase == "start":
            self._started[event.stage] = time.monotonic()
        if self._bars is not None:
            self._draw(self._bars, event)
        elif event.phase == "end":
            seconds = time.monotonic() - self._started.pop(event.stage, time.monotonic())
            if seconds >= SHORTEST_STAGE:
                note = f", {event.note}" if event.note else ""
                with suppress(OSError):  # a full standard error stops no run
                    print(escaped(f"{event.stage}: {seconds:.1f} s{note}"), file=self.stream, flush=True)

    def advance(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Draw the progress of work that sends no events."""
        if self._bars is not None:
            self._draw(self._bars, Event(stage, "advance", done, total, note))

    def _draw(self, bars: Bars, event: Event) -> None:
        if event.stage not in self._tasks:
            count = f"0/{event.total}" if event.total else ""
            stage, note = escaped(event.stage), escaped(event.note)
            self._tasks[event.stage] = bars.add_task(stage, total=event.total or None, note=note, count=count)
        task = self._tasks[event.stage]
        if event.phase == "advance":
            count = f"{event.done}/{event.total}" if event.total else str(event.done)
            bars.update(task, completed=event.done, total=event.total or None, note=escaped(event.note), count=count)
        elif event.phase == "end":
            total = next(running.total for running in bars.tasks if running.id == task) or 1
            count = f"{event.total}/{event.total}" if event.total else ""
            bars.update(task, completed=total, total=total, note=escaped(event.note), count=count)
