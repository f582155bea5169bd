"""The command line: one module for each command. Only this package prints.

Each command imports what it needs when it runs, so that help and validation start fast.
"""

from __future__ import annotations

import importlib
import logging
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

INTERRUPTED = 130  # exit code of some versions of typer after Ctrl-C; others use 1


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
    """Run the command line. The exit code is 0 for success, 2 for wrong input, and 1 for any other error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # print "?" for a character that the terminal lacks
    with suppress(ValueError):  # signals can be set in the main thread only
        signal.signal(signal.SIGTERM, _terminated)
    # torch warns of a missing GPU on import, which says nothing to whoever computes on a CPU
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
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
    except Exception as error:  # an unexpected error: a short message and exit code 1
        if State.traceback:
            raise
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        screen_of(sys.stderr).line(f"unexpected error: {text}\n  → 'qplug --traceback …' shows the traceback", "red")
        sys.exit(1)
