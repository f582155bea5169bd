"""Commands in forks of a process that has imported qplug: a command takes no start-up time, and can be killed.

The process that forks is not the one of the tests, whose gradients have threads that a fork would lack.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from qplug.cli import main
from qplug.hooks.registry import installed

installed()  # before any fork, so that a command does not import every plugin again
CONTEXT = multiprocessing.get_context("forkserver")


@dataclass
class Ended:
    """A command that has ended.

    Attributes:
        code: its exit code; negative for a signal.
        text: what it printed on stdout and stderr.
        cpu: seconds of processor time, but for its last moments.
    """

    code: int
    text: str
    cpu: float


def _run(arguments: Sequence[str], output: str) -> None:
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    main(arguments)


def start(arguments: Sequence[str], output: Path) -> ForkServerProcess:
    """The process that runs ``qplug ARGUMENTS``, with ``output`` as its stdout and stderr."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), before]))
    CONTEXT.set_forkserver_preload(["forked"])
    forkserver.ensure_running()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    process = CONTEXT.Process(target=_run, args=(list(arguments), str(output)))
    process.start()
    return process


def wait(process: ForkServerProcess, output: Path, seconds: float | None = None) -> Ended:
    """The end of ``process``, which is killed once it has taken ``seconds`` of processor time."""
    cpu = 0.0
    while process.exitcode is None:
        cpu = max(cpu, cpu_seconds(process))
        if seconds is not None and cpu > seconds:
            process.kill()
        process.join(0.005)
    text = output.read_text(errors="replace") if output.exists() else ""
    return Ended(process.exitcode, text, cpu)


def cpu_seconds(process: ForkServerProcess) -> float:
    """Processor time that a process has taken; 0 once it has ended."""
    with suppress(OSError):
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def command(arguments: Sequence[str], output: Path, seconds: float | None = None) -> Ended:
    """``qplug ARGUMENTS`` from start to end."""
    return wait(start(arguments, output), output, seconds)
