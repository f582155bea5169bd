"""Tables as Markdown, CSV and HTML."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qplug.cli.report.screen import Table
from qplug.core.text import escaped

FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")
"""Beginnings of a cell that a spreadsheet takes for a formula, in full width too."""

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem;color:#1a1a1a}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}caption{text-align:left;font-weight:600;"
    "padding:.5rem 0}th,td{padding:.25rem .75rem;border-bottom:1px solid #ddd;text-align:left}"
    ".right{text-align:right}p{color:#555;margin:.25rem 0}section{margin:2rem 0;overflow-x:auto}"
)


def markdown(tables: Iterable[Table]) -> str:
    """Pipe tables. Each has its title above it and its notes below it, as paragraphs."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    table = table.safe()
    lines = [f"**{_cell(table.title)}**", ""] if table.title else []
    if table.rows:
        sides = ["---:" if name in table.right else "---" for name in table.columns]
        lines += [_row(map(_cell, table.columns)), _row(sides), *(_row(map(_cell, row)) for row in table.rows), ""]
    return "\n".join([*lines, *(f"{_cell(note)}\n" for note in table.notes)])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    for sign in "\\|*_`<[":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split("\n"))


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """A header of the first row's keys, then one line per row.

    Lists and mappings become JSON. Missing values are empty. An apostrophe precedes text that a spreadsheet would
    execute as a formula; numbers, negative ones too, stay as they are.
    """
    stream = io.StringIO()
    keys = list(rows[0]) if rows else []
    writer = csv.DictWriter(stream, keys, lineterminator="\n")
    writer.writerow({key: _inert(key) for key in keys})
    for row in rows:
        writer.writerow({key: _inert(value) for key, value in row.items()})
    return stream.getvalue()


def _inert(value: Any) -> Any:
    """The value of a cell; text that begins like a formula is preceded by an apostrophe, and safe to print."""
    text = json.dumps(value) if isinstance(value, (list, dict)) else value
    if not isinstance(text, str):
        return text
    text = escaped(text, breaks=False)
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA) else text


def page(tables: Iterable[Table], title: str) -> str:
    """A complete HTML page that has no scripts and loads no other files."""
    sections = "\n".join(_section(table) for table in tables)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{sections}\n</body>\n</html>\n'


def _section(table: Table) -> str:
    table = table.safe()
    notes = "".join(f"<p>{html.escape(note)}</p>\n" for note in table.notes)
    caption = html.escape(table.title)
    if not table.rows:
        return f"<section>\n<strong>{caption}</strong>\n{notes}</section>"
    sides = [' class="right"' if name in table.right else "" for name in table.columns]
    head = "".join(f"<th{side}>{html.escape(name)}</th>" for name, side in zip(table.columns, sides, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{side}>{html.escape(cell)}</td>" for cell, side in zip(row, sides, strict=True)) + "</tr>"
        for row in table.rows
    )
    return (
        f"<section>\n<table>\n<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n{notes}</section>"
    )
