"""Docstrings and tables as Markdown."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Sequence

CODE = re.compile(r"``(.+?)``|`(.+?)`", re.DOTALL)
HEADING = re.compile(r"^(Args|Attributes|Returns|Raises|Examples?)::?$")


def escaped(text: str) -> str:
    """Plain text whose characters mean nothing to Markdown; what stands in backticks becomes code."""
    parts, end = [], 0
    for match in CODE.finditer(text):
        parts += [_plain(text[end : match.start()]), f"`{match[1] or match[2]}`"]
        end = match.end()
    return "".join([*parts, _plain(text[end:])])


def _plain(text: str) -> str:
    return re.sub(r"([*<>\[\]])", r"\\\1", text)


def cell(text: str) -> str:
    """``escaped`` on one line, for a table."""
    return " ".join(escaped(text).split()).replace("|", "\\|")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are already Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def docstring(thing: object) -> str:
    """The docstring of ``thing``, its examples as code and its sections as lists."""
    parts: list[str] = []
    code: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.getdoc(thing) or ""):
        head, _, rest = block.partition("\n")
        match = HEADING.match(head.strip())
        if match and match[1].startswith("Example"):
            code = [rest] if rest else ["\n"]
        elif code and block.startswith(" "):
            code.append(block)
            continue
        else:
            parts += _code(code)
            code = []
            parts += [f"**{match[1]}**", _entries(rest)] if match else [escaped(block)]
    return "\n\n".join(parts + _code(code)) + "\n"


def _code(blocks: list[str]) -> list[str]:
    """An example, whose empty lines had split it."""
    text = textwrap.dedent("\n\n".join(blocks)).strip("\n")
    return ["**Example**", f"```python\n{text}\n```"] if text else []


def _entries(text: str) -> str:
    """``name: meaning`` entries, each of which may go on in deeper lines."""
    entries = re.split(r"\n(?=\S)", textwrap.dedent(text))
    return "\n".join(f"- {cell(entry)}" for entry in entries)
