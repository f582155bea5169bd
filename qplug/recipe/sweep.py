"""Sweeps: a YAML file that names recipes, with other values for each, models and seeds; every combination is a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError

from qplug.core.component import Config
from qplug.core.errors import InputError, Problem, RecipeError
from qplug.hooks.registry import Registry
from qplug.recipe.check import Named
from qplug.recipe.load import error_of, load_recipe, read_tree
from qplug.recipe.overrides import Override
from qplug.recipe.schema import Recipe
from qplug.recipe.yaml_tree import Node, Place

Values = dict[str, JsonValue]
LARGEST_SEED = 2**32 - 1
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
RANK = 1_000_000
"""Sorts problems of a sweep behind those of the recipes that it names, and of any ``--set``."""


class Row(Config):
    """One recipe of a sweep."""

    recipe: str = Field(min_length=1, description="the recipe's file, relative to the sweep's")
    name: str | None = Field(None, min_length=1, description="what tables call it; the recipe's name unless given")
    set: Values = Field({}, description="values to override, by dotted keys as --set takes them")


class Sweep(Config):
    """What ``qplug compare SWEEP`` runs: every row on every model with every seed."""

    version: Literal[1] = Field(description="version of the sweep format")
    title: str = Field(min_length=1, description="what the table shows")
    seeds: tuple[Seed, ...] = Field((0,), min_length=1, description="seeds of every run that sets none itself")
    set: Values = Field({}, description="values for every row; a row's own come after them, a model's last")
    models: tuple[Values, ...] = Field(({},), min_length=1, description="values that choose a model, one set each")
    recipes: tuple[Row, ...] = Field(min_length=1)


def is_sweep(path: Path) -> bool:
    """Whether the YAML file names recipes, as no recipe does; what is wrong with it is found when it is loaded."""
    try:
        return "recipes" in read_tree(path, []).value
    except InputError:
        return False


def load_sweep(
    path: Path, overrides: Sequence[str] = (), registry: Registry | None = None, seeds: Sequence[int] = ()
) -> tuple[str, list[Recipe]]:
    """The title, and the recipe of every run: rows in their order within each model, seeds innermost.

    Args:
        path: the sweep.
        overrides: ``--set`` values, which win over all others.
        registry: what is installed, unless given.
        seeds: in the place of the sweep's own.

    Raises:
        InputError: a file cannot be read.
        RecipeError: with every problem of the sweep, or of the recipes that it makes, each once.
    """
    problems: list[tuple[Place, Problem]] = []
    root = read_tree(path, problems, RANK)
    sweep = _validate(root, problems)
    recipes: list[Recipe] = []
    found: dict[Problem, None] = {}
    for index, values in _combinations(root, sweep):
        row = sweep.recipes[index]
        file = path.parent / row.recipe
        if is_sweep(file):
            found[_named(root, index, "is a sweep itself, and a sweep names recipes")] = None
            continue
        try:
            recipe = load_recipe(file, [*values, *overrides], registry)
        except RecipeError as error:
            found.update(dict.fromkeys(error.problems))
        except InputError as error:
            found[_named(root, index, f"{file}: {error.what}", error.fix)] = None
        else:
            name = {"name": row.name} if row.name else {}
            own = [recipe.seed] if _sets_seed([*values, *overrides]) else sweep.seeds
            recipes += [recipe.model_copy(update={**name, "seed": seed}) for seed in seeds or own]
    if found:
        raise RecipeError(list(found))
    return sweep.title, recipes


def _validate(root: Node, problems: list[tuple[Place, Problem]]) -> Sweep:
    from qplug.recipe.messages import explain

    try:
        sweep = Sweep.model_validate_json(json.dumps(root.plain()), strict=True)
    except ValidationError as error:
        problems += explain(error.errors(include_url=False, include_input=False), root, Named(), Sweep)
    if problems:
        raise error_of(problems)
    return sweep


def _combinations(root: Node, sweep: Sweep) -> Iterator[tuple[int, list[Override]]]:
    """The number of a row, and what is set in its recipe."""
    everywhere = _overrides(root.child("set"))
    for number in range(len(sweep.models)):
        model = _overrides(_at(root, "models", number))
        for index in range(len(sweep.recipes)):
            yield index, [*everywhere, *_overrides(_at(root, "recipes", index, "set")), *model]


def _sets_seed(overrides: Sequence[Override | str]) -> bool:
    return "seed" in {(o if isinstance(o, str) else o.key).partition("=")[0].strip() for o in overrides}


def _named(root: Node, index: int, what: str, fix: str = "") -> Problem:
    """A problem at the place where a row names its recipe."""
    node = _at(root, "recipes", index, "recipe")
    assert node is not None  # validated: every row names one
    return node.place.problem(f"recipes.{index}.recipe: {what}", fix)


def _at(node: Node | None, *steps: str | int) -> Node | None:
    for step in steps:
        node = node.child(step) if node is not None else None
    return node


def _overrides(node: Node | None) -> list[Override]:
    values: dict[str, Any] = node.value if node is not None else {}
    return [Override(key, value, value.key) for key, value in values.items()]
