"""Parts of messages: names that are safe to print, lists of names, and suggestions for a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_NAME = 60
"""Characters of a name in a message, at most."""
LONGEST_PLACE = 400
"""Characters of the place of an error, at most: the path of a file with line and column."""
LONGEST_WORD = 200
"""Characters of a word for which close names are sought: the search takes the product of both lengths."""
SHORTEST_PREFIX = 3
"""Characters of a word that may be the beginning of a name."""


class Alarm(str):
    """A warning that must not be overlooked: the figures that it is about say nothing."""

    __slots__ = ()


def escaped(text: str, breaks: bool = True) -> str:
    """``text`` with escapes such as ``\\x1b`` and ``\\u202e`` in place of what a terminal would obey or not show.

    These are the control, format and bidirectional characters, unusual spaces and halves of characters. Line breaks
    stay as they are, unless ``breaks`` is false.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or (breaks and c == "\n") else repr(c)[1:-1] for c in text)


def short(name: object, most: int = LONGEST_NAME) -> str:
    """A name for a message: ``escaped``, on one line, and cut after ``most`` characters."""
    text = str(name)
    shown = escaped(text[: most + 1], breaks=False)
    return shown if len(text) <= most and len(shown) <= most else f"{shown[: most - 1]}…"


def close(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Names close to ``word``: those that it begins, the shortest first, then similar ones, closest first.

    Case is ignored, and so is the plugin before a technique's name.
    """
    if len(word) > LONGEST_WORD:
        return []
    names = sorted(set(known))
    begun = [name for name in names if name.lower().startswith(word.lower())] if len(word) >= SHORTEST_PREFIX else []
    similar = difflib.get_close_matches(word.lower(), [name.lower() for name in names], n=count, cutoff=0.6)
    result = sorted(begun, key=len) + [name for lowered in similar for name in names if name.lower() == lowered]
    tail = word.rsplit(".", 1)[-1]
    result += [
        n for n in names if "." in n and difflib.SequenceMatcher(None, n.rsplit(".", 1)[-1], tail).ratio() > 0.75
    ]
    return list(dict.fromkeys(result))[:count]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x' or 'y'?``, or an empty string if no name is close."""
    names = close(word, known)
    return f"did you mean {' or '.join(repr(name) for name in names)}?" if names else ""


def listed(names: Iterable[str], most: int = 3) -> str:
    """``a, b, c and 4 more``: at most ``most`` of the names."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def percent(share: float, digits: int = 1) -> str:
    """A share between 0 and 1 in percent, with more digits where they would round it to 0 or to 100 % and it is not."""
    while 0.0 < share < 1.0 and round(100 * share, digits) in (0.0, 100.0) and digits < 6:
        digits += 1
    return f"{100 * share:.{digits}f} %"
