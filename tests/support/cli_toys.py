"""The command line within the process of a test."""

from __future__ import annotations

import signal

import pytest

from qplug.cli import main


def call(*arguments: str) -> int:
    """The exit code of ``qplug ARGUMENTS``; the handler of SIGTERM is as before."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
    finally:
        signal.signal(signal.SIGTERM, before)
    return int(ended.value.code or 0)
