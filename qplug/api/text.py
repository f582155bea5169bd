"""Tables as plain text."""

from __future__ import annotations

import io
from collections.abc import Iterable

from qplug.cli.report.screen import Screen, Table


def plain(tables: Iterable[Table]) -> str:
    """The tables as ``qplug`` prints them into a pipe."""
    stream = io.StringIO()
    screen = Screen(stream)
    for table in tables:
        screen.table(table)
    return stream.getvalue()
