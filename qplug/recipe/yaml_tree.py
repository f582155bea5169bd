"""YAML text → a tree of values with their places. Only plain values are constructed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qplug.core.errors import Problem

if TYPE_CHECKING:
    from ruamel.yaml import YAML
    from ruamel.yaml.nodes import MappingNode, Node as YamlNode, ScalarNode

MAX_NODES = 20_000
"""Far above any recipe; limits aliases of aliases, which grow exponentially."""
SNIPPET_WIDTH = 70
"""Characters of a line in a snippet, at most, so that it fits a terminal of 80 columns."""
_CORE = "tag:yaml.org,2002:"
_PLAIN = {f"{_CORE}{name}" for name in ("null", "bool", "int", "float", "str", "timestamp", "value", "map", "seq")}


@dataclass(frozen=True)
class Source:
    """The origin of values: a file with its lines, or one ``--set`` without lines, whose name is its text."""

    name: str
    lines: tuple[str, ...] = ()
    rank: int = 0


@dataclass(frozen=True)
class Place:
    """A position in a source, counted from 0."""

    source: Source
    line: int = 0
    column: int = 0
    length: int = 1

    @property
    def where(self) -> str:
        """``file:line:column`` counted from 1, or the ``--set`` text."""
        return f"{self.source.name}:{self.line + 1}:{self.column + 1}" if self.source.lines else self.source.name

    @property
    def order(self) -> tuple[int, int, int]:
        """Sort key of problems: the order of the file, then ``--set``."""
        return self.source.rank, self.line, self.column

    @property
    def snippet(self) -> str:
        """The line with a caret under the place, at most ``SNIPPET_WIDTH`` characters; empty without lines."""
        if self.line >= len(self.source.lines):
            return ""
        start = max(0, self.column - SNIPPET_WIDTH // 2)
        line = self.source.lines[self.line].replace("\t", " ")[start : start + SNIPPET_WIDTH]
        caret = self.column - start
        width = max(1, min(self.length, len(line) - caret))
        number = f"{self.line + 1:>5} | "
        return f"{number}{line}\n{' ' * (len(number) - 2)}| {' ' * caret}{'^' * width}"

    def problem(self, what: str, fix: str = "") -> Problem:
        """A problem at this place."""
        return Problem(self.where, what, fix, self.snippet)


@dataclass
class Node:
    """A value at a place: a scalar, a ``dict[str, Node]`` or a ``list[Node]``; ``key`` is the place of its key."""

    value: Any
    place: Place
    key: Place

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {name: node.plain() for name, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def child(self, step: str | int) -> Node | None:
        """The node under a key or an index, ``None`` if there is none."""
        if isinstance(self.value, dict):
            return self.value.get(step)
        if isinstance(self.value, list) and isinstance(step, int) and step < len(self.value):
            item: Node = self.value[step]
            return item
        return None

    def describe(self) -> str:
        """The value in the words of a message."""
        if isinstance(self.value, dict):
            return "a mapping" if self.value else "an empty mapping"
        if isinstance(self.value, list):
            return "a list" if self.value else "an empty list"
        if self.value is None:
            return "nothing"
        text = str(self.value).lower() if isinstance(self.value, bool) else repr(self.value)
        return text if len(text) <= 60 else f"{text[:57]}…"


class _Unreadable(Exception):
    """Ends reading; the problem is already recorded."""


@dataclass
class Reader:
    """Reads one source. Problems are added to ``problems`` with their places, and reading continues if possible."""

    source: Source
    problems: list[tuple[Place, Problem]]
    count: int = 0
    active: set[int] = field(default_factory=set)

    def read(self, text: str) -> Node | None:
        """The tree of ``text``; ``None`` if it is empty or cannot be read."""
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError

        yaml = YAML(typ="safe", pure=True)
        try:
            root = yaml.compose(text)
            return None if root is None else self._node(yaml, root, None)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = self._place(mark, mark) if mark else Place(self.source)
            context = f" ({error.context})" if error.context else ""
            self._add(
                place,
                f"this is not YAML: {' '.join((error.problem or 'cannot be read').split())}{context}",
                _hint(error),
            )
        except YAMLError as error:
            self._add(Place(self.source), f"this is not YAML: {' '.join(str(error).split())}")
        except _Unreadable:
            return None
        except RecursionError:
            self._add(Place(self.source), "is nested too deeply")
        return None

    def _place(self, start: Any, end: Any) -> Place:
        return Place(self.source, start.line, start.column, end.column - start.column if end.line == start.line else 1)

    def _add(self, place: Place, what: str, fix: str = "") -> None:
        self.problems.append((place, place.problem(what, fix)))

    def _node(self, yaml: YAML, node: YamlNode, key: Place | None) -> Node:
        from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

        place = self._place(node.start_mark, node.end_mark)
        self.count += 1
        if self.count > MAX_NODES or id(node) in self.active:
            self._add(place, "an alias repeats itself" if id(node) in self.active else f"more than {MAX_NODES} values")
            raise _Unreadable
        self.active.add(id(node))
        if str(node.tag) not in _PLAIN:
            self._add(place, f"the tag '{node.tag}' is not allowed: recipes have plain values only", "remove the tag")
        value: Any
        if isinstance(node, MappingNode):
            value = self._mapping(yaml, node)
        elif isinstance(node, SequenceNode):
            value = [self._node(yaml, item, None) for item in node.value]
        else:
            assert isinstance(node, ScalarNode)
            value = self._scalar(yaml, node, place)
        self.active.discard(id(node))
        return Node(value, place, key or place)

    def _mapping(self, yaml: YAML, node: MappingNode) -> dict[str, Node]:
        result: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in node.value:
            place = self._place(key.start_mark, key.end_mark)
            if str(key.tag) == f"{_CORE}merge":
                parts = value.value if isinstance(value.value, list) and value.id == "sequence" else [value]
                for part in parts:
                    base = self._node(yaml, part, place)
                    if isinstance(base.value, dict):
                        merged = {**base.value, **merged}
                    else:
                        self._add(place, f"'<<' merges mappings, received {base.describe()}")
            elif str(key.tag) != f"{_CORE}str":
                self._add(place, f"a key must be text, received {_short(key)}")
            elif key.value in result:
                first = result[key.value].key
                self._add(
                    place,
                    f"the key '{key.value}' is given twice",
                    f"the first is in line {first.line + 1}; remove one",
                )
            else:
                result[key.value] = self._node(yaml, value, place)
        return {**merged, **result}

    def _scalar(self, yaml: YAML, node: ScalarNode, place: Place) -> Any:
        kind = str(node.tag).removeprefix(_CORE)
        if kind not in ("null", "bool", "int", "float"):
            if not str(node.value).isprintable() and any(0xD800 <= ord(char) < 0xE000 for char in node.value):
                self._add(place, "expected whole characters, received half of one (a surrogate)")
                return None
            return str(node.value)
        try:
            value = getattr(yaml.constructor, f"construct_yaml_{kind}")(node)
        except (ValueError, KeyError, OverflowError):
            self._add(place, f"cannot be read as a value of type {kind}: {_short(node)}")
            return None
        if isinstance(value, float) and not math.isfinite(value):
            self._add(place, f"expected a finite number, received {node.value}")
        return value


def _short(node: YamlNode) -> str:
    return "a list or a mapping" if isinstance(node.value, list) else repr(str(node.value)[:40])


def _hint(error: Exception) -> str:
    text = str(error)
    if "'\\t'" in text:
        return "indent with spaces"
    if "alias" in text or "cannot start any token" in text:
        return "put quotes around a value that begins with one of * & ! % @ `"
    if "mapping values are not allowed" in text:
        return "check the indentation, and put quotes around a value that holds ': '"
    return ""
