"""How the threads of torch wait for each other."""

from __future__ import annotations

import os
import sys

BUSY = 0.5
"""Load of the machine, as a share of its processors, above which waiting threads disturb those that they wait for."""


def wait_passively_if_busy() -> None:
    """Let the threads of OpenMP sleep while they wait, if the machine is busy. The results are the same bits.

    By default a thread that has finished its part of an operation runs in a circle until the others have. Where other
    programs need the processors, the others do not get on meanwhile: on two busy processors, the range search of
    ``vit_digits`` takes 52 s with two threads, 1.4 s with one, and 1.7 s with two that sleep. On an idle machine
    waking up costs more than waiting, so nothing changes there. OpenMP reads the setting when torch is imported.
    """
    if "torch" in sys.modules or not hasattr(os, "getloadavg"):
        return
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if os.getloadavg()[0] >= BUSY * usable:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
