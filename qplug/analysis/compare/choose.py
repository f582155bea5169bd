"""Choosing among rows of values, and putting them in order, by keys that a person writes."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Container, Sequence
from fnmatch import fnmatchcase
from typing import Any

from qplug.core.errors import InputError
from qplug.core.text import did_you_mean

Values = dict[str, Any]
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(rf"\s*(\w+)\s*({'|'.join(_OPERATORS)})\s*(.*?)\s*")


def condition(text: str) -> Callable[[Values], bool]:
    """A condition on a row: ``KEY OP VALUE``; text is compared by pattern, and what is missing never fits.

    Raises:
        InputError: no such form; and when a row is held against it, no such key, or no number where one is needed.
    """
    where, match = f"--where {text}", _CONDITION.fullmatch(text)
    if match is None:
        fix = "--where 'top1>=0.5', --where 'name=mptq*', --where model=deit*"
        raise InputError(f"expected KEY, one of {' '.join(_OPERATORS)}, and a value", where=where, fix=fix)
    key, sign, value = match.groups()

    def holds(row: Values) -> bool:
        held = _value(row, key, where)
        if held is None:
            return False
        if isinstance(held, str):
            if sign not in ("=", "!="):
                raise InputError(f"{key} is text, which has no order", where=where, fix="use = or !=, and a pattern")
            return fnmatchcase(held, value) == (sign == "=")
        try:
            return _OPERATORS[sign](held, float(value))
        except ValueError:
            raise InputError(f"{key} is a number, received {value!r}", where=where) from None

    return holds


def in_order(rows: Sequence[Values], key: str, least: Container[str]) -> list[Values]:
    """Rows by ``key``, best first and what is missing last; text by the alphabet.

    Args:
        rows: of one kind: all have the same keys.
        key: of a number or a text; ``none`` keeps the order.
        least: the keys of which less is better.

    Raises:
        InputError: there is no such key, or its values have no order.
    """
    if key == "none":
        return list(rows)
    known = [row for row in rows if _value(row, key, f"--sort {key}") is not None]
    down = key not in least and not any(isinstance(row[key], str) for row in known)
    return sorted(known, key=lambda row: row[key], reverse=down) + [row for row in rows if row[key] is None]


def _value(row: Values, key: str, where: str) -> Any:
    """A number, a text or ``None``; raises ``InputError`` for what is none of these."""
    if key in row and not isinstance(row[key], (list, dict)):
        return row[key]
    known = [name for name, value in row.items() if not isinstance(value, (list, dict))]
    if key in row:
        raise InputError(f"'{key}' is neither a number nor text", where=where, fix=f"keys: {', '.join(known)}")
    fix = did_you_mean(key, known) or f"keys: {', '.join(known)}"
    raise InputError(f"there is no '{key}'", where=where, fix=fix)
