"""Change one value of a recipe by ``--set`` or by a sweep. Its problems name that place, not the recipe."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass

from qplug.core.errors import Problem
from qplug.core.text import LONGEST_NAME, did_you_mean, listed, short
from qplug.recipe.yaml_tree import MAX_DEPTH, Node, Place, Reader, Source


class _SetError(Exception):
    """Problem of one option, which is then not applied."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


@dataclass(frozen=True)
class SetOption:
    """One value to set: a dotted key such as ``quantize.weights.bits``, the value, and the place of the option."""

    key: str
    value: Node
    place: Place


def parse(text: str, rank: int, problems: list[tuple[Place, Problem]]) -> SetOption | None:
    """Parse the ``key=value`` of one ``--set``; the value is YAML."""
    source = Source(f"--set {short(text)}", rank=rank)
    place = Place(source)
    key, equals, value = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        problems.append((place, place.problem("expected key=value with a dotted key", "--set quantize.weights.bits=6")))
        return None
    if key.count(".") >= MAX_DEPTH:
        problems.append((place, place.problem(f"the key has more than {MAX_DEPTH} parts")))
        return None
    before = len(problems)
    node = Reader(source, problems).read(value)
    return None if len(problems) > before else SetOption(key.strip(), node or Node(None, place, place), place)


def option(key: str, value: object, where: str, rank: int) -> SetOption:
    """The option that sets ``key`` to plain values; ``where`` names it in problems, such as ``--model``."""
    source = Source(where, rank=rank)
    place = Place(source)
    return SetOption(key, Reader(source, []).read(json.dumps(value)) or Node(None, place, place), place)


def apply_override(root: Node, override: SetOption, problems: list[tuple[Place, Problem]]) -> None:
    """Set one value in ``root``.

    Examples of dotted keys: ``quantize.weights.bits``, ``techniques.2.bits``, ``techniques.mptq_vit.opt_m.split``.
    Missing mappings are created.
    """
    try:
        _set(
            root, override.key.split("."), copy.deepcopy(override.value), []
        )  # copied, because a sweep sets it in many recipes
    except _SetError as error:
        problems.append((override.place, override.place.problem(error.what, error.fix)))


def _set(node: Node, steps: list[str], value: Node, done: list[str]) -> None:
    if isinstance(node.value, list):
        index, used = _item(node, steps, _path(done))
        rest = steps[used:]
        if not rest:
            node.value[index] = value
        else:
            _set(node.value[index], rest, value, [*done, *steps[:used]])
        return
    if node.value is None and done:
        node.value, node.place, node.key = {}, value.place, value.key
    if not isinstance(node.value, dict):
        raise _SetError(f"'{_path(done)}' is {node.describe()}, so it has no key to set")
    step, rest = steps[0], steps[1:]
    if not rest:
        node.value[step] = value
    else:
        child = node.value.setdefault(step, Node({}, value.place, value.place))
        _set(child, rest, value, [*done, step])


def _item(node: Node, steps: list[str], path: str) -> tuple[int, int]:
    """Index of the item that ``steps`` begin with, by number or by a technique's name; number of steps used."""
    size = len(node.value)
    if steps[0].isdecimal():
        if int(steps[0]) >= size:
            raise _SetError(f"'{path}' has {size} items: expected an index below {size}, received {short(steps[0])}")
        return int(steps[0]), 1
    uses = [_use(item) for item in node.value]
    matching = [(index, use) for index, use in enumerate(uses) if use and steps[: use.count(".") + 1] == use.split(".")]
    if len(matching) > 1:
        ways = " or ".join(f"{path}.{index}" for index, _ in matching)
        raise _SetError(f"'{path}' has {short(matching[0][1])} more than once", f"use its index: {ways}")
    if not matching:
        names = [short(use) for use in uses if use]
        if names:
            name = ".".join(steps[:2])
            fix = did_you_mean(name, names) or f"the recipe has: {listed(names, 8)}"
            raise _SetError(f"'{path}' has no technique '{short(name)}'", fix)
        raise _SetError(
            f"'{path}' is a list: expected an index, received '{short(steps[0])}'", f"use an index from 0 to {size - 1}"
        )
    index, use = matching[0]
    return index, use.count(".") + 1


def _path(steps: list[str]) -> str:
    return short(".".join(steps), 2 * LONGEST_NAME)


def _use(item: Node) -> str:
    child = item.child("use")
    return child.value if child is not None and isinstance(child.value, str) else ""
