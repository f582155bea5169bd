"""The command line: one module a command. Only here and in ``report`` is anything printed.

Imports wait until a command needs them.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Annotated

import typer

from qplug.cli.app import COMMANDS, State, app, report_error, screen_of
from qplug.core.errors import QplugError, Terminated
from qplug.core.memory import keep_freed_memory

__all__ = ["app", "main"]

for _command in COMMANDS:
    importlib.import_module(f"qplug.cli.{_command.replace('-', '_')}")

INTERRUPTED = 130  # what some versions of typer end with after Ctrl-C, and others with 1


def _version(wanted: bool) -> None:
    if wanted:
        from qplug.core.version import __version__

        print(f"qplug {__version__}")
        raise typer.Exit


@app.callback()
def _qplug(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where in the code an error came from.")] = False,
) -> None:
    State.traceback = traceback


def _terminated(number: int, _: FrameType | None) -> None:
    print("stopped by a signal", file=sys.stderr)
    raise Terminated(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends with 0 where it did its work, 2 where the input is wrong, and 1 otherwise."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows "?" instead of failing
    with suppress(ValueError):  # only the main thread may
        signal.signal(signal.SIGTERM, _terminated)
    State.traceback = State.json = False
    keep_freed_memory()
    try:
        app(args=arguments, prog_name="qplug")
    except SystemExit as end:
        sys.exit(1 if end.code == INTERRUPTED else end.code)
    except QplugError as error:
        if State.traceback:
            raise
        sys.exit(report_error(error))
    except Exception as error:  # whatever else goes wrong: a short message and exit code 1
        if State.traceback:
            raise
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        screen_of(sys.stderr).line(
            f"unexpected error: {text}\n  → 'qplug --traceback …' shows where it came from", "red"
        )
        sys.exit(1)
