"""Filters and order of rows of values, by the keys of ``--where`` and ``--sort``."""

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
_CONDITION = re.compile(rf"\s*([\w.]+)\s*({'|'.join(_OPERATORS)})\s*(.*?)\s*")


def condition(text: str) -> Callable[[Values], bool]:
    """A condition on a row, ``KEY OP VALUE``. Text is matched by a pattern. A missing value never matches.

    Raises:
        InputError: the text has another form. The condition itself raises it for an unknown key or a wrong number.
    """
    where, match = f"--where {text}", _CONDITION.fullmatch(text)
    if match is None:
        fix = "--where 'top1>=0.5', --where 'name=mptq*', --where model=deit*"
        raise InputError(
            f"expected KEY, one of {' '.join(_OPERATORS)}, and a value, received {text!r}", where=where, fix=fix
        )
    key, sign, value = match.groups()

    def holds(row: Values) -> bool:
        actual = _value(row, key, where)
        if actual is None:
            return False
        if isinstance(actual, str):
            if sign not in ("=", "!="):
                raise InputError(
                    f"{key} is text and has no order, received {sign}", where=where, fix="use = or != with a pattern"
                )
            return fnmatchcase(actual, value) == (sign == "=")
        try:
            return _OPERATORS[sign](actual, float(value))
        except ValueError:
            raise InputError(f"{key} is a number, received {value!r}", where=where) from None

    return holds


def in_order(rows: Sequence[Values], key: str, least: Container[str]) -> list[Values]:
    """Rows sorted by ``key``: the best first, missing values last, text by the alphabet.

    Args:
        rows: rows with the same keys.
        key: key of a number or of text; ``none`` keeps the order.
        least: keys of which a smaller value is better.

    Raises:
        InputError: there is no such key, or its values have no order.
    """
    if key == "none":
        return list(rows)
    present = [row for row in rows if _value(row, key, f"--sort {key}") is not None]
    down = key not in least and not any(isinstance(row[key], str) for row in present)
    return sorted(present, key=lambda row: row[key], reverse=down) + [row for row in rows if row[key] is None]


def _value(row: Values, key: str, where: str) -> Any:
    """A number, text or ``None``; raises ``InputError`` for an unknown key or another kind of value."""
    if key in row and not isinstance(row[key], (list, dict)):
        return row[key]
    known = [name for name, value in row.items() if not isinstance(value, (list, dict))]
    if key in row:
        raise InputError(
            f"expected a key of a number or of text, received '{key}'", where=where, fix=f"keys: {', '.join(known)}"
        )
    fix = did_you_mean(key, known) or f"keys: {', '.join(known)}"
    raise InputError(f"there is no key '{key}'", where=where, fix=fix)
