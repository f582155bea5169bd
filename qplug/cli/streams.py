"""Standard output and error: results go to the first, and what other code prints goes to the second."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

from qplug.core.errors import QplugError

if TYPE_CHECKING:
    from types import TracebackType


class OutputError(QplugError):
    """Standard output cannot be written to."""


class Output:
    """Standard output for results; raises ``OutputError`` where it is closed or full, or its reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write ``text``; returns its length."""
        with _named():
            return self._stream.write(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with _named():
            self._stream.flush()


class _Foreign(io.TextIOBase):
    """What other code takes for standard output: prints to standard error, and cannot be closed."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def fileno(self) -> int:
        return sys.stderr.fileno()

    def isatty(self) -> bool:
        return sys.stderr.isatty()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        pass


_results: TextIO | None = None


def results() -> TextIO:
    """The stream for results: standard output, also while it is guarded."""
    return _results or sys.stdout


@contextmanager
def named_output() -> Iterator[None]:
    """Within it, whatever cannot be written to standard output is an ``OutputError``."""
    stdout = sys.stdout
    sys.stdout = cast(TextIO, Output(stdout))
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout = stdout


@contextmanager
def guarded() -> Iterator[None]:
    """Within it, only ``results`` writes to standard output. Techniques, models and libraries print elsewhere."""
    global _results
    stdout, before = sys.stdout, _results
    _results, sys.stdout = stdout, _Foreign()
    try:
        yield
        stdout.flush()
    finally:
        _results, sys.stdout = before, stdout


def prepare_streams() -> None:
    """Make both streams safe to print to; raises ``OutputError`` if standard output is closed."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # print "?" for a character that the terminal lacks
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - whatever prints next needs one
        raise OutputError("is closed", where="standard output", fix="to run without output: >/dev/null")


def abandon_output() -> None:
    """Send the rest of standard output nowhere: Python flushes it again when it ends, and would report an error."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _output_error(error: Exception) -> OutputError:
    if isinstance(error, BrokenPipeError):
        return OutputError("its reader closed the pipe, so that the rest is lost", where="standard output")
    return OutputError(f"cannot be written to: {getattr(error, 'strerror', None) or error}", where="standard output")


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise _output_error(error) from None
