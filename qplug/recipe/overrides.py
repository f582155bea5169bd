"""Changing one value of a recipe's tree, by ``--set`` or by a sweep. Problems point there, not at the recipe."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from qplug.core.errors import Problem
from qplug.core.text import did_you_mean
from qplug.recipe.yaml_tree import Node, Place, Reader, Source


class _Wrong(Exception):
    """Ends the work on one override; the message is the problem."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


@dataclass(frozen=True)
class Override:
    """One value to set: a dotted key (``quantize.weights.bits``), and the value with the place where it was written."""

    key: str
    value: Node
    place: Place


def parse(text: str, rank: int, problems: list[tuple[Place, Problem]]) -> Override | None:
    """``key=value`` of one ``--set``, the value read as YAML."""
    source = Source(f"--set {text}", rank=rank)
    place = Place(source)
    key, equals, value = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        problems.append((place, place.problem("expected key=value, the key dotted", "--set quantize.weights.bits=6")))
        return None
    before = len(problems)
    node = Reader(source, problems).read(value)
    return None if len(problems) > before else Override(key.strip(), node or Node(None, place, place), place)


def apply_override(root: Node, override: Override, problems: list[tuple[Place, Problem]]) -> None:
    """Set one value in ``root``.

    A key is dotted: ``quantize.weights.bits``, ``techniques.2.bits``, ``techniques.mptq_vit.opt_m.split``. Mappings
    that are not there yet are made.
    """
    try:
        _set(root, override.key.split("."), copy.deepcopy(override.value), [])  # a sweep sets it in many recipes
    except _Wrong as wrong:
        problems.append((override.place, override.place.problem(wrong.what, wrong.fix)))


def _set(node: Node, steps: list[str], value: Node, done: list[str]) -> None:
    if isinstance(node.value, list):
        index, used = _item(node, steps, ".".join(done))
        rest = steps[used:]
        if not rest:
            node.value[index] = value
        else:
            _set(node.value[index], rest, value, [*done, *steps[:used]])
        return
    if node.value is None and done:
        node.value, node.place, node.key = {}, value.place, value.key
    if not isinstance(node.value, dict):
        raise _Wrong(f"'{'.'.join(done)}' is {node.describe()} and has nothing inside that could be set")
    step, rest = steps[0], steps[1:]
    if not rest:
        node.value[step] = value
    else:
        child = node.value.setdefault(step, Node({}, value.place, value.place))
        _set(child, rest, value, [*done, step])


def _item(node: Node, steps: list[str], path: str) -> tuple[int, int]:
    """The item that ``steps`` begin with, by index or by a technique's name, and how many steps that took."""
    size = len(node.value)
    if steps[0].isdecimal():
        if int(steps[0]) >= size:
            raise _Wrong(f"'{path}' has {size} items, so the index must be below {size}, received {steps[0]}")
        return int(steps[0]), 1
    uses = [_use(item) for item in node.value]
    found = [(index, use) for index, use in enumerate(uses) if use and steps[: use.count(".") + 1] == use.split(".")]
    if len(found) > 1:
        ways = " or ".join(f"{path}.{index}" for index, _ in found)
        raise _Wrong(f"'{path}' holds {found[0][1]} more than once", f"name it by its place: {ways}")
    if not found:
        named = [use for use in uses if use]
        if named:
            asked = ".".join(steps[:2])
            fix = did_you_mean(asked, named) or f"the recipe has: {', '.join(named)}"
            raise _Wrong(f"'{path}' holds no technique '{asked}'", fix)
        raise _Wrong(
            f"'{path}' is a list, so an index must follow, received '{steps[0]}'", f"indices go from 0 to {size - 1}"
        )
    index, use = found[0]
    return index, use.count(".") + 1


def _use(item: Node) -> str:
    child = item.child("use")
    return child.value if child is not None and isinstance(child.value, str) else ""
