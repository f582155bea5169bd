"""The setting of OpenMP is made in time, only on a busy machine, and never against the user's."""

from __future__ import annotations

import os
import sys

import pytest

from qplug.core.threads import wait_passively_if_busy


@pytest.mark.parametrize(
    ("load", "loaded", "own", "expected"),
    [
        (2.0, False, None, "PASSIVE"),
        (0.1, False, None, None),
        (2.0, True, None, None),
        (2.0, False, "ACTIVE", "ACTIVE"),
    ],
)
def test_threads_sleep_on_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch, load: float, loaded: bool, own: str | None, expected: str | None
) -> None:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    modules = {name: module for name, module in sys.modules.items() if name != "torch"}
    if loaded:
        modules["torch"] = sys
    monkeypatch.setattr("qplug.core.threads.sys.modules", modules)
    monkeypatch.setattr(os, "getloadavg", lambda: (load * processors, 0.0, 0.0), raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if own:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    wait_passively_if_busy()
    assert os.environ.get("OMP_WAIT_POLICY") == expected
