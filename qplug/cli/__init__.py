"""The command line: one module for each command. Only this package prints.

Each command imports what it needs when it runs, so that help and validation start fast.
"""

from __future__ import annotations

import importlib
import io
import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Annotated

import typer

from qplug.cli.app import COMMANDS, State, app, report_error, screen_of
from qplug.cli.streams import OutputError, abandon_output, named_output, prepare_streams
from qplug.core.errors import QplugError, Terminated, ending, out_of_memory
from qplug.core.memory import keep_freed_memory
from qplug.core.threads import wait_passively_if_busy

__all__ = ["app", "main"]

for _command in COMMANDS:
    importlib.import_module(f"qplug.cli.{_command.replace('-', '_')}")

INTERRUPTED = 130
"""Exit code after Ctrl-C, as of a process that SIGINT ended."""


def _version(requested: bool) -> None:
    if requested:
        from qplug.core.version import __version__

        print(f"qplug {__version__}")
        raise typer.Exit


@app.callback()
def _qplug(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the Python traceback of an error.")] = False,
) -> None:
    State.traceback = traceback


def _terminated(number: int, _: FrameType | None) -> None:
    print("stopped by a signal", file=sys.stderr)
    raise Terminated(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. The exit code is 0 for success, 2 for wrong input, 130 for Ctrl-C, and else 1."""
    with suppress(ValueError):  # signals can be set in the main thread only
        signal.signal(signal.SIGTERM, _terminated)
    # torch warns of a missing GPU on import, which says nothing to whoever computes on a CPU
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    State.traceback = State.json = False
    State.written = ""
    try:
        prepare_streams()
        keep_freed_memory()
        wait_passively_if_busy()
        with named_output():
            code = app(args=arguments, prog_name="qplug", standalone_mode=False)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException as error:
        if State.traceback and not isinstance(error, SystemExit):
            raise
        code = _report(error)
    if code == INTERRUPTED:
        screen_of(sys.stderr).line(f"interrupted{State.written and '; '}{State.written}", "red")
    sys.exit(code if isinstance(code, int) else 0)


def _report(error: BaseException) -> int:
    """Print whatever ended a command; returns the exit code."""
    if isinstance(error, Terminated):
        return 1
    if isinstance(error, OutputError):
        abandon_output()
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # a wrong command line; typer has its own copy of click
        usage = io.StringIO()
        error.show(file=usage)
        screen_of(sys.stderr).line(usage.getvalue().rstrip())
        return int(error.exit_code)
    if out_of_memory(error):
        where = f"{error.where}: " if isinstance(error, QplugError) and error.where else ""
        error = QplugError(
            f"memory ran out ({where}{_text(error.__cause__ or error)})",
            fix="give the computation smaller batches (--set data.batch_size=4), or end other programs",
        )
    if isinstance(error, QplugError):
        return report_error(error)
    if isinstance(error, SystemExit):
        return report_error(QplugError(f"code that qplug called ended the program: {ending(error)}"))
    text = f"unexpected error: {_text(error)}\n  → 'qplug --traceback …' shows the traceback"
    screen_of(sys.stderr).line(text, "red")
    return 1


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
