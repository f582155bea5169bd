"""JSON files of unknown origin: whatever is no plain file, is too large, or holds no object is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from qplug.core.errors import InputError
from qplug.core.storage.plain_file import require_file

LARGEST_JSON = 256 << 20
"""Bytes of a JSON file, at most; the list of the images of ImageNet's training set takes 90 MB."""


def read_json(path: Path, limit: int = LARGEST_JSON) -> dict[str, Any]:
    """The JSON object in a plain file of at most ``limit`` bytes; raises ``InputError``."""
    size = require_file(path).st_size
    if size > limit:
        raise InputError(f"expected at most {limit} bytes, received {size}", where=str(path))
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_not_json)
    except RecursionError:
        raise InputError("the file cannot be read: it is nested too deeply", where=str(path)) from None
    except (OSError, ValueError) as error:
        raise InputError(f"the file cannot be read: {error}", where=str(path)) from error
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object, received {type(value).__name__}", where=str(path))
    return value


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
