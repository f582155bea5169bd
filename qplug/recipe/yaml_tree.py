"""YAML text → a tree of values with their places. Only plain values are constructed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qplug.core.errors import Problem
from qplug.core.text import escaped, short

if TYPE_CHECKING:
    from ruamel.yaml import YAML
    from ruamel.yaml.composer import Composer
    from ruamel.yaml.nodes import MappingNode, Node as YamlNode, ScalarNode
    from ruamel.yaml.reader import Reader as YamlReader

MAX_NODES = 20_000
"""Far above any recipe; limits aliases of aliases, which grow exponentially."""
MAX_DEPTH = 64
"""Levels of mappings and lists, at most; far above any recipe, and below the limit of the JSON that is validated."""
SNIPPET_WIDTH = 70
"""Characters of a line in a snippet, at most, so that it fits a terminal of 80 columns."""
LONGEST_TEXT = 600
"""Characters of a problem's description, and of its fix, at most."""
_CORE = "tag:yaml.org,2002:"
_SCALARS = {f"{_CORE}{name}" for name in ("null", "bool", "int", "float", "str", "timestamp", "value")}
_TAGS = {"ScalarNode": _SCALARS, "MappingNode": {f"{_CORE}map"}, "SequenceNode": {f"{_CORE}seq"}}
"""Class of a node → the tags that it may have."""


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
        line = "".join(char if char.isprintable() else "\ufffd" for char in line)  # one column each, for the caret
        caret = self.column - start
        width = max(1, min(self.length, len(line) - caret))
        number = f"{self.line + 1:>5} | "
        return f"{number}{line}\n{' ' * (len(number) - 2)}| {' ' * caret}{'^' * width}"

    def problem(self, what: str, fix: str = "") -> Problem:
        """A problem at this place."""
        return Problem(self.where, _cut(what), _cut(fix), self.snippet)


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


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


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
        from ruamel.yaml.error import MarkedYAMLError
        from ruamel.yaml.reader import ReaderError

        yaml = YAML(typ="safe", pure=True)
        yaml.Composer, yaml.Reader = _bounded_composer(self), _reader_with_mark()
        try:
            root = yaml.compose(text)
            return None if root is None else self._node(yaml, root, None)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = self._place(mark, mark) if mark else Place(self.source)
            context = f" ({error.context})" if error.context else ""
            self._not_yaml(place, f"{error.problem or 'cannot be read'}{context}", _hint(error))
        except ReaderError as error:
            before = text[: error.position]
            place = Place(self.source, before.count("\n"), len(before) - before.rfind("\n") - 1)
            self._not_yaml(place, f"the character {escaped(chr(error.character), breaks=False)} is not allowed")
        except _Unreadable:
            pass
        except Exception as error:  # ruamel passes errors of its parts on: ValueError of chr(), KeyError of a version
            self._not_yaml(self._place(yaml.reader.last, yaml.reader.last), *_reason(error))
        return None

    def enter(self, mark: Any, depth: int) -> None:
        """Count a value at ``mark``, the YAML reader's position; ends reading beyond ``MAX_NODES`` or ``MAX_DEPTH``."""
        self.count += 1
        if depth > MAX_DEPTH:
            self._add(self._place(mark, mark), f"is nested more than {MAX_DEPTH} levels deep")
        elif self.count > MAX_NODES:
            self._add(self._place(mark, mark), f"more than {MAX_NODES} values")
        else:
            return
        raise _Unreadable

    def _not_yaml(self, place: Place, what: str, fix: str = "") -> None:
        self._add(place, f"this is not YAML: {' '.join(what.split())}", fix)

    def _place(self, start: Any, end: Any) -> Place:
        return Place(self.source, start.line, start.column, end.column - start.column if end.line == start.line else 1)

    def _add(self, place: Place, what: str, fix: str = "") -> None:
        self.problems.append((place, place.problem(what, fix)))

    def _node(self, yaml: YAML, node: YamlNode, key: Place | None) -> Node:
        from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

        place = self._place(node.start_mark, node.end_mark)
        if id(node) in self.active:
            self._add(place, "an alias repeats itself")
            raise _Unreadable
        self.enter(node.start_mark, len(self.active) + 1)  # aliases repeat nodes that were composed once
        self.active.add(id(node))
        if str(node.tag) not in _TAGS[type(node).__name__]:
            tag = short(node.tag)
            self._add(place, f"the tag '{tag}' is not allowed here: recipes have plain values only", "remove the tag")
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
            elif (name := self._whole(str(key.value), place)) in result:
                first = result[name].key
                self._add(
                    place,
                    f"the key '{short(name)}' is given twice",
                    f"the first is in line {first.line + 1}; remove one",
                )
            elif name is not None:
                result[name] = self._node(yaml, value, place)
        return {**merged, **result}

    def _whole(self, text: str, place: Place) -> str | None:
        """``text`` with the two halves of a character, as JSON escapes it, put together; halves alone are no text."""
        if text.isprintable():
            return text
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._add(place, "expected whole characters, received half of one (a surrogate)")
            return None

    def _scalar(self, yaml: YAML, node: ScalarNode, place: Place) -> Any:
        kind = str(node.tag).removeprefix(_CORE)
        if kind not in ("null", "bool", "int", "float") or str(node.tag) not in _SCALARS:
            return self._whole(str(node.value), place)
        try:
            value = getattr(yaml.constructor, f"construct_yaml_{kind}")(node)
        except Exception:  # ruamel's constructors index and convert without checks
            self._add(place, f"cannot be read as a value of type {kind}: {_short(node)}")
            return None
        if kind == "null" and node.value not in ("", "~", "null", "Null", "NULL"):
            self._add(place, f"cannot be read as a value of type null: {_short(node)}")
        if isinstance(value, float) and not math.isfinite(value):
            self._add(place, f"expected a finite number, received {node.value}")
        return value


def _bounded_composer(reader: Reader) -> type[Composer]:
    """A composer that stops at the limits of ``reader``, before the rest of the text is parsed."""
    from ruamel.yaml.composer import Composer

    class Bounded(Composer):
        level = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.warn_double_anchors = False  # YAML 1.2 allows them; the warning would be printed
            self.level += 1
            reader.enter(self.parser.peek_event().start_mark, self.level)
            node = super().compose_node(parent, index)
            self.level -= 1
            return node

        def compose_document(self) -> Any:
            root = super().compose_document()
            reader.count = 0
            return root

    return Bounded


def _reader_with_mark() -> type[YamlReader]:
    """ruamel's reader of characters, which forgets where it was when ruamel resets it after an error."""
    from ruamel.yaml.reader import Reader as YamlReader

    class Reader(YamlReader):
        last: Any = None

        def reset_reader(self) -> None:
            self.last = self.get_mark() if hasattr(self, "buffer") else None
            super().reset_reader()

    return Reader


def _reason(error: Exception) -> tuple[str, str]:
    """The words and the fix for an error that ruamel did not expect itself."""
    if isinstance(error, (ValueError, OverflowError)):
        return "an escape that is no character (the last is \\U0010FFFF)", ""
    if isinstance(error, (AssertionError, KeyError)):
        return "a version other than 1.1 and 1.2", "remove the line above that begins with %YAML"
    return f"{type(error).__name__}: {error}", ""


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
