"""Commands in forks of this process, which has imported qplug: a command takes no start-up time, and can be killed."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qplug.cli import main
from qplug.hooks.registry import installed

installed()  # before any fork, so that a command does not import every plugin again


@dataclass
class Ended:
    """A command that has ended.

    Attributes:
        code: its exit code; negative for a signal.
        text: what it printed on stdout and stderr.
        cpu: seconds of processor time.
    """

    code: int
    text: str
    cpu: float


def start(arguments: Sequence[str], output: Path) -> int:
    """The process that runs ``qplug ARGUMENTS``, with ``output`` as its stdout and stderr."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        with output.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        faulthandler.disable()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            main(arguments)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(child: int, output: Path, seconds: float | None = None) -> Ended:
    """The end of ``child``, which is killed once it has taken ``seconds`` of processor time."""
    ended = 0
    while seconds is not None and not ended:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if not ended:
            if cpu_seconds(child) > seconds:
                os.kill(child, signal.SIGKILL)
                break
            time.sleep(0.002)
    if not ended:
        _, status, usage = os.wait4(child, 0)
    text = output.read_text(errors="replace") if output.exists() else ""
    return Ended(os.waitstatus_to_exitcode(status), text, usage.ru_utime + usage.ru_stime)


def cpu_seconds(process: int) -> float:
    """Processor time that a live process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def command(arguments: Sequence[str], output: Path, seconds: float | None = None) -> Ended:
    """``qplug ARGUMENTS`` from start to end."""
    return wait(start(arguments, output), output, seconds)
