"""Class maps: which label each class folder has."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Collection
from pathlib import Path

from qplug.core.errors import InputError
from qplug.core.storage.plain_file import require_file

IMAGENET = "imagenet"
"""Name of the built-in class map of ImageNet-1k."""
MAX_BYTES = 1 << 24
MAX_LABEL = 2**31 - 1
"""The largest label: run folders store labels as int32."""

_NUMBERED = re.compile(r"\s*(.*\S)\s+([+-]?\d[\w.+-]*|[+-]?\.\d+|true|false|nan|[+-]?inf)\s*", re.IGNORECASE)


def class_map(value: str, folders: Collection[str] = ()) -> dict[str, int]:
    """Class name → label, by the value of ``class_map`` in a recipe: a file's path, or ``imagenet``.

    Raises ``InputError`` as ``read_class_map``.
    """
    if value == IMAGENET:
        return {name: label for label, name in enumerate(imagenet_synsets())}
    return read_class_map(Path(value).expanduser(), folders)


def read_class_map(path: Path, folders: Collection[str] = ()) -> dict[str, int]:
    """Class name → label, from timm's text format or from lines of ``<class> <label>``.

    Numbers are labels only if every line ends with one. Even then ``tile 2`` may be the name of a class: it is, if the
    class folders ``folders`` are listed that way only.

    Raises:
        InputError: the file cannot be read, or a line cannot be meant; names the line.
    """
    lines = _lines(path)
    plain = {line.strip(): index for index, line in enumerate(lines)}
    matches = [_NUMBERED.fullmatch(line) for line in lines]
    numbered = all(matches) and not (folders and set(folders) <= plain.keys())
    labels: dict[str, int] = {}
    for index, (line, match) in enumerate(zip(lines, matches, strict=True)):
        where = f"{path}:{index + 1}"
        name, label = (match[1], _label(match[2], where)) if match and numbered else (line.strip(), index)
        if not name or name in labels:
            what = f"class '{name}' is listed twice" if name else "an empty line would shift the labels after it"
            raise InputError(what, where=where)
        labels[name] = label
    return labels


def _lines(path: Path) -> list[str]:
    status = require_file(path, "class map")
    if status.st_size > MAX_BYTES:
        what = f"expected a class map of at most {MAX_BYTES // 2**20} MiB, received {status.st_size / 2**20:.0f} MiB"
        raise InputError(what, where=str(path), fix="give a text file with one class folder a line")
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"the class map cannot be read: {reason}", where=str(path)) from error
    lines = text.split("\n")  # not splitlines: it also splits names at U+2028 and its like
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise InputError("the class map is empty", where=str(path))
    return lines


def _label(text: str, where: str) -> int:
    if re.fullmatch(r"[0-9]+", text, re.ASCII) and len(text) <= 10 and int(text) <= MAX_LABEL:
        return int(text)
    shown = text if len(text) <= 30 else f"{text[:27]}…"
    raise InputError(
        f"expected a label of 0 … {MAX_LABEL}, received {shown}",
        where=where,
        fix="a label is the index of the class among the model's outputs, from 0",
    )


@functools.cache
def imagenet_synsets() -> tuple[str, ...]:
    """WordNet's synsets of ImageNet-1k, such as ``n01440764``, in the order of the labels, from timm's own list."""
    spec = importlib.util.find_spec("timm")  # importing timm.data for its ImageNetInfo would import torch
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0], "data", "_info", "imagenet_synsets.txt")
    return tuple(read_class_map(path))
