"""Errors of pydantic → problems: place in the file, expected and received value, fix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qplug.core.errors import Problem
from qplug.core.text import close, did_you_mean, short
from qplug.recipe.check import Loc, Named, dotted
from qplug.recipe.yaml_tree import Node, Place

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

_EXPECTED = {
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "path_type": "a path",
    "none_required": "nothing",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}

MOST_FIXES = 200
"""Unknown keys for which similar ones are sought: more fill many screens, and the search takes milliseconds each."""


def explain(
    errors: Iterable[ErrorDetails], root: Node, named: Named, recipe: type[BaseModel]
) -> list[tuple[Place, Problem]]:
    """One problem for each place; "or" joins the alternatives of a union."""
    schema: dict[str, Any] = {}
    missing: dict[Loc, tuple[Node, list[str]]] = {}
    expected: dict[Loc, tuple[Node, list[str]]] = {}
    problems: list[tuple[Place, Problem]] = []
    probably_meant: set[Loc] = set()
    known_at: dict[Loc, set[str]] = {}
    for error in errors:
        kind = error["type"]
        loc, node = _locate(error["loc"], root, named, missing=kind == "missing")
        if any(loc[: len(bad)] == bad for bad in named.unknown) or _reported(kind, error, node):
            continue
        if kind == "missing":
            missing.setdefault(loc[:-1], (node, []))[1].append(str(loc[-1]))
        elif kind == "extra_forbidden":
            schema = schema or recipe.model_json_schema()
            if loc[:-1] not in known_at:
                known_at[loc[:-1]] = keys_at(schema, loc[:-1], named.tags)
            fix, known = "", known_at[loc[:-1]]
            if len(problems) < MOST_FIXES:
                fix = did_you_mean(str(loc[-1]), known) or f"known keys: {', '.join(sorted(known))}"
                probably_meant.update((*loc[:-1], key) for key in close(str(loc[-1]), known, 1))
            problems.append((node.key, node.key.problem(f"{dotted(loc)}: unknown key '{short(loc[-1])}'", fix)))
        elif kind in ("value_error", "assertion_error"):
            problems.append((node.place, node.place.problem(_at(loc, error["msg"].partition(", ")[2]))))
        else:
            expected.setdefault(loc, (node, []))[1].append(_expected(error))
    for loc, (node, keys) in missing.items():
        names = [f"'{short(key)}'" for key in keys if (*loc, key) not in probably_meant]
        if names:
            what = f"missing the key{'s' if len(names) > 1 else ''} {', '.join(names)}"
            problems.append((node.place, node.place.problem(_at(loc, what))))
    for loc, (node, alternatives) in expected.items():
        what = f"expected {' or '.join(dict.fromkeys(alternatives))}, received {node.describe()}"
        problems.append((node.place, node.place.problem(_at(loc, what), _closest(node, alternatives))))
    return problems


def _at(loc: Loc, what: str) -> str:
    return f"{dotted(loc)}: {what}" if loc else what


def _reported(kind: str, error: ErrorDetails, node: Node) -> bool:
    """Whether another problem already reports the cause of this error."""
    if kind == "finite_number":
        return True
    return kind == "too_short" and isinstance(node.value, list) and len(node.value) >= error["ctx"]["min_length"]


def _locate(loc: tuple[int | str, ...], root: Node, named: Named, *, missing: bool) -> tuple[Loc, Node]:
    """The location in the file, without pydantic's names of union members, and the deepest node on it."""
    node, path, tagged = root, list[str | int](), False
    for index, step in enumerate(loc):
        if missing and index == len(loc) - 1:
            path.append(step)
            break
        if named.in_location(tuple(path)) and not tagged:
            tagged = True
            continue
        child = node.child(step)
        if child is not None:
            node = child
            path.append(step)
    return tuple(path), node


def _expected(error: ErrorDetails) -> str:
    """The expected value in words, from pydantic's error."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind in _BOUNDS:
        word, bound = _BOUNDS[kind]
        return f"{word} {context[bound]}"
    if kind in ("literal_error", "enum"):
        return str(context.get("expected", ""))
    if kind == "too_short":
        return f"at least {context.get('min_length')} item{'s' if context.get('min_length') != 1 else ''}"
    if kind == "too_long":
        return f"at most {context.get('max_length')} items"
    message = error["msg"]
    for start in ("Input should be ", "String should have ", "Input should have "):
        if message.startswith(start):
            rest = message[len(start) :]
            return rest if start.startswith("Input should be") else f"text with {rest}"
    return f"something else ({message[:1].lower()}{message[1:]})"


def _closest(node: Node, alternatives: list[str]) -> str:
    """A suggestion from quoted alternatives, such as the values of an enum."""
    if not isinstance(node.value, str):
        return ""
    return did_you_mean(node.value, [part for text in alternatives for part in text.split("'")[1::2]])


def keys_at(schema: Mapping[str, Any], loc: Loc, tags: Mapping[Loc, str]) -> set[str]:
    """The keys that a JSON schema allows at a location of the file; ``tags`` selects the members of unions."""
    options = _expand(schema, schema)
    for index, step in enumerate(loc, start=1):
        parts = [
            option.get("items") if isinstance(step, int) else option.get("properties", {}).get(step)
            for option in options
        ]
        options = [option for part in parts if isinstance(part, dict) for option in _expand(part, schema)]
        if tag := tags.get(loc[:index]):
            options = [option for option in options if _const(option, tag)]
    return {key for option in options for key in option.get("properties", {})}


def _expand(option: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The alternatives behind references and unions."""
    if "$ref" in option:
        return _expand(schema["$defs"][option["$ref"].rsplit("/", 1)[-1]], schema)
    for union in ("anyOf", "oneOf", "allOf"):
        if union in option:
            return [member for part in option[union] for member in _expand(part, schema)]
    return [option]


def _const(option: Mapping[str, Any], tag: str) -> bool:
    properties = option.get("properties", {})
    return any(properties.get(name, {}).get("const") == tag for name in ("use", "source"))
