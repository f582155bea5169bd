"""Damage to recipes and run folders, drawn by a seed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from ruamel.yaml import YAML

TOKENS = [
    *"{ } [ ] : - , & * ! | > % @ ` ' \" # ? \t".split(" "),
    *(
        "&a",
        "*a",
        "<<: *a",
        "!!python/object:os.system",
        "!!int",
        "!!int '_'",
        "!!binary '='",
        "!!timestamp x",
        "!!set",
    ),
    *("---", "...", "%YAML 9.9", "%TAG ! x", "~", "null", ".nan", "-.inf", "0x", "0o9", "1e999", "1_0", "2024-01-01"),
    *("\x00", "\x1b]0;x\x07", "\x1b[2J", "\u202e", "\ufeff", "\u2028", "\U0001f600", "\\U00110000", '"\\U00110000"'),
    *("a" * 100_000, "[" * 400, "{a: " * 300, "9" * 5_000, "é", "=1+1", "os:system", "../../x", "/dev/zero"),
]
VALUES: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        10**30,
        1e308,
        float("nan"),
        float("inf"),
        "",
        " ",
        "x",
        "x" * 100_000,
        [],
        {},
        [[]],
        {"": ""},
    ),
    *("\x1b[2J", "\u202etxt", "/dev/null", "..", "os:system", "sys:exit", "-0", "1e-400", [None] * 1_000, {"use": []}),
    *({"source": "import", "target": "os:system"}, {"use": "baseline.minmax"}, "2024-01-01", b"\xff", 3 + 0j, -(2**63)),
]


def mutated_text(text: str, draw: Random) -> bytes:
    """A recipe's text with one to three pieces of damage."""
    data = text
    for _ in range(draw.randint(1, 3)):
        data = draw.choice(TEXT)(data, draw)
    content = data.encode("utf-8", "surrogatepass")
    if draw.random() < 0.1 and content:
        content = flipped(content, draw)
    return content


def _insert(text: str, draw: Random) -> str:
    at = draw.randint(0, len(text))
    return text[:at] + draw.choice(TOKENS) + text[at:]


def _cut(text: str, draw: Random) -> str:
    start = draw.randint(0, len(text))
    return text[:start] + text[start + draw.randint(1, 40) :]


def _lines(text: str, draw: Random) -> str:
    lines = text.splitlines(keepends=True) or [""]
    a, b = draw.randrange(len(lines)), draw.randrange(len(lines))
    if draw.random() < 0.5:
        lines[a], lines[b] = lines[b], lines[a]
    else:
        lines.insert(a, lines[b])
    return "".join(lines)


def _tree(text: str, draw: Random) -> str:
    """A value, key or entry of what the text holds, replaced."""
    try:
        tree = YAML(typ="safe", pure=True).load(text)
    except Exception:
        return text
    if not isinstance(tree, dict):
        return text
    change(tree, draw, VALUES)
    try:
        return json.dumps(tree, default=str)
    except (RecursionError, ValueError):
        return text


TEXT: list[Callable[[str, Random], str]] = [_insert, _insert, _cut, _lines, _tree, _tree]


def change(tree: Any, draw: Random, values: list[Any]) -> None:
    """Replace, delete or rename one entry somewhere in ``tree``, in place."""
    places = [(tree, key) for key in (tree if isinstance(tree, dict) else range(len(tree)))]
    found = []
    while places:
        holder, key = places.pop()
        found.append((holder, key))
        below = holder[key]
        if isinstance(below, dict):
            places += [(below, name) for name in below]
        elif isinstance(below, list):
            places += [(below, index) for index in range(min(len(below), 20))]
    if not found:
        return
    holder, key = draw.choice(found)
    how = draw.random()
    if how < 0.6:
        holder[key] = draw.choice(values)
    elif how < 0.8 or not isinstance(holder, dict):
        del holder[key]
    else:
        holder[str(draw.choice(TOKENS))] = holder.pop(key)


def flipped(content: bytes, draw: Random) -> bytes:
    """``content`` with one bit changed."""
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]


def damage(folder: Path, other: Path, draw: Random) -> str:
    """Damage one file of a run folder, or put one of the run ``other`` in its place; returns what was done."""
    file = draw.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    kinds = ["bit", "cut", "empty", "gone", "folder", "dangling", "fifo", "other", "junk", "json", "json", "json"]
    how = draw.choice(kinds)
    content = file.read_bytes()
    if how == "json" and file.suffix == ".json":
        tree = json.loads(content)
        change(tree, draw, [value for value in VALUES if not isinstance(value, bytes | complex)])
        file.write_text(json.dumps(tree))
    elif how == "other" and (other / file.name).exists():
        shutil.copy(other / file.name, file)
    elif how == "cut":
        file.write_bytes(content[: draw.randrange(len(content))])
    elif how in ("empty", "junk"):
        file.write_bytes(b"" if how == "empty" else draw.randbytes(200))
    elif how in ("gone", "folder", "dangling", "fifo"):
        file.unlink()
        make: dict[str, Callable[[], object]] = {
            "folder": file.mkdir,
            "dangling": lambda: file.symlink_to("nowhere"),
            "fifo": lambda: os.mkfifo(file),
        }
        make.get(how, lambda: None)()
    else:
        how = "bit"
        file.write_bytes(flipped(content, draw))
    return f"{how} of {file.name}"
