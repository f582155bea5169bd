"""Sweeps: YAML files of recipes × values × models × seeds. Each combination is a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError

from qplug.core.component import Config
from qplug.core.errors import InputError, Problem, RecipeError
from qplug.hooks.registry import Registry
from qplug.recipe.allow_code import AllowCode
from qplug.recipe.check import Named
from qplug.recipe.load import error_of, load_recipe, read_tree
from qplug.recipe.overrides import SetOption, parse
from qplug.recipe.schema import Recipe
from qplug.recipe.yaml_tree import Node, Place

Values = dict[str, JsonValue]
LARGEST_SEED = 2**32 - 1
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
SWEEP_RANK = 1_000_000
"""Rank of the problems of a sweep: after those of its recipes and of every ``--set``."""


class SweepRow(Config):
    """One recipe of a sweep."""

    recipe: str = Field(min_length=1, description="file of the recipe, relative to the sweep")
    name: str | None = Field(None, min_length=1, description="name in tables; default: the recipe's name")
    set: Values = Field({}, description="values to change, by the dotted keys of --set")


class Sweep(Config):
    """The runs of ``qplug compare SWEEP``: every row on every model with every seed."""

    version: Literal[1] = Field(description="version of the sweep format")
    title: str = Field(min_length=1, description="title of the table")
    seeds: tuple[Seed, ...] = Field((0,), min_length=1, description="seeds of every run that does not set its own")
    set: Values = Field(
        {}, description="values for every row; those of a row override them, those of a model override both"
    )
    models: tuple[Values, ...] = Field(
        ({},), min_length=1, description="values that select a model, one mapping for each"
    )
    recipes: tuple[SweepRow, ...] = Field(min_length=1)


def is_sweep(path: Path) -> bool:
    """Whether the YAML file has the key ``recipes``, which no recipe has. Loading reports its problems."""
    try:
        return "recipes" in read_tree(path, []).value
    except InputError:
        return False


def load_sweep(
    path: Path,
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
    seeds: Sequence[int] = (),
    *,
    allow_code: AllowCode = False,
) -> tuple[str, list[Recipe]]:
    """The title, and the recipe of each run in the order models, rows, seeds.

    Args:
        path: file of the sweep.
        overrides: ``--set`` values, which override all others.
        registry: installed components, by default all.
        seeds: seeds that replace those of the sweep.
        allow_code: as ``load_recipe`` takes it.

    Raises:
        InputError: a file cannot be read.
        RecipeError: with all problems of the sweep, or of its recipes, each once.
    """
    problems: list[tuple[Place, Problem]] = []
    root = read_tree(path, problems, SWEEP_RANK)
    sweep = _validate(root, problems)
    given = [parse(text, rank, []) or text for rank, text in enumerate(overrides, start=1)]  # no part of the names
    recipes: list[Recipe] = []
    failures: dict[Problem, None] = {}
    for index, values in _combinations(root, sweep):
        row = sweep.recipes[index]
        file = path.parent / row.recipe
        if is_sweep(file):
            failures[_problem(root, index, "expected a recipe, received a sweep")] = None
            continue
        try:
            recipe = load_recipe(file, [*values, *given], registry, allow_code=allow_code)
        except RecipeError as error:
            failures.update(dict.fromkeys(error.problems))
        except InputError as error:
            failures[_problem(root, index, f"{file}: {error.what}", error.fix)] = None
        else:
            name = {"name": row.name} if row.name else {}
            run_seeds = [recipe.seed] if _sets_seed([*values, *overrides]) else sweep.seeds
            recipes += [recipe.model_copy(update={**name, "seed": seed}) for seed in seeds or run_seeds]
    if failures:
        raise RecipeError(list(failures))
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


def _combinations(root: Node, sweep: Sweep) -> Iterator[tuple[int, list[SetOption]]]:
    """Index of a row, and the values to set in its recipe."""
    common = _overrides(root.child("set"))
    for number in range(len(sweep.models)):
        model = _overrides(_at(root, "models", number))
        for index in range(len(sweep.recipes)):
            yield index, [*common, *_overrides(_at(root, "recipes", index, "set")), *model]


def _sets_seed(overrides: Sequence[SetOption | str]) -> bool:
    return "seed" in {(o if isinstance(o, str) else o.key).partition("=")[0].strip() for o in overrides}


def _problem(root: Node, index: int, what: str, fix: str = "") -> Problem:
    """A problem at the key ``recipe`` of a row."""
    node = _at(root, "recipes", index, "recipe")
    assert node is not None  # validated: every row has the key
    return node.place.problem(f"recipes.{index}.recipe: {what}", fix)


def _at(node: Node | None, *steps: str | int) -> Node | None:
    for step in steps:
        node = node.child(step) if node is not None else None
    return node


def _overrides(node: Node | None) -> list[SetOption]:
    values: dict[str, Any] = node.value if node is not None else {}
    return [SetOption(key, value, value.key) for key, value in values.items()]
