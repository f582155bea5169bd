"""Load a recipe: a YAML file and ``--set`` → ``Recipe``, or one error with all problems."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qplug.core.errors import InputError, Problem, RecipeError, exits_named
from qplug.core.storage.plain_file import refuse_special
from qplug.core.text import did_you_mean, listed
from qplug.hooks.registry import Registry, installed
from qplug.recipe.allow_code import AllowCode, CodeNotAllowed, foreign_code
from qplug.recipe.backend_support import check_backend
from qplug.recipe.check import check_names
from qplug.recipe.named import recipe_file
from qplug.recipe.overrides import SetOption, apply_override, parse
from qplug.recipe.schema import Recipe, build_type
from qplug.recipe.settings_name import with_settings
from qplug.recipe.yaml_tree import Node, Place, Reader, Source

MAX_BYTES = 1 << 20
IN_MEMORY = "the recipe"
"""The place of problems of a recipe that is given by its values."""


class SweepGiven(InputError):
    """The file of a recipe holds a sweep."""


@exits_named
def load_recipe(
    path: str | Path | Mapping[str, Any],
    overrides: Sequence[str | SetOption] = (),
    registry: Registry | None = None,
    *,
    allow_code: AllowCode = False,
) -> Recipe:
    """Read, override and validate a recipe. Opens no other file; imports only what ``allow_code`` describes.

    Args:
        path: YAML file, the name of a recipe of qplug such as ``w8a8``, or the values of a recipe. Paths inside it are
            unchanged, and relative to the current directory.
        overrides: ``key=value`` texts (see ``qplug run --set``), or those of a sweep; applied in order, then validated.
            The texts become part of the recipe's name, unless one of them sets the name.
        registry: installed components, by default all.
        allow_code: whether the recipe may name code from outside the installed packages, which a run of it would
            execute: true, or the modules that may be named. Without it, the target of ``source: import`` in an
            installed package is imported and checked.

    Raises:
        InputError: the file cannot be read, or is not a mapping.
        RecipeError: with all problems in the order of the file, those of ``overrides`` last.
    """
    registry = installed() if registry is None else registry
    problems: list[tuple[Place, Problem]] = []
    if isinstance(path, Mapping):
        root, path = tree_of(path, IN_MEMORY, problems), Path("recipe")
    else:
        path = recipe_file(path, registry.techniques)
        root = read_tree(path, problems)
    if "recipes" in root.value:
        raise SweepGiven("expected a recipe, received a sweep", where=str(path), fix=f"qplug compare {path}")
    for rank, given in enumerate(overrides, start=1):
        override = parse(given, rank, problems) if isinstance(given, str) else given
        if override is not None:
            apply_override(root, override, problems)
    recipe = _validate(root, registry, problems)
    if problems or recipe is None:
        raise error_of(problems)
    if refused := foreign_code(root, recipe, registry, allow_code):
        raise CodeNotAllowed([problem for _, problem in refused])
    texts = [text for text in overrides if isinstance(text, str)]
    name = recipe.name or path.stem
    if not any(text.partition("=")[0].strip() == "name" for text in texts):
        name = with_settings(name, texts)
    return recipe.model_copy(update={"name": name})


def read_tree(path: Path, problems: list[tuple[Place, Problem]], rank: int = 0) -> Node:
    """The mapping in a YAML file, every value with its place.

    Raises:
        InputError: the file cannot be read, or is not a mapping.
        RecipeError: the file is not YAML.
    """
    text = _read(path)
    source = Source(str(path), tuple(text.splitlines()) or ("",), rank)
    root = Reader(source, problems).read(text)
    if root is None and problems:
        raise error_of(problems)
    if root is None:
        raise InputError("the recipe is empty", where=str(path), fix="'qplug schema' prints the keys of a recipe")
    if not isinstance(root.value, dict):
        raise InputError(f"expected a mapping at the top, received {root.describe()}", where=root.place.where)
    return root


def tree_of(values: Mapping[str, Any], where: str, problems: list[tuple[Place, Problem]], rank: int = 0) -> Node:
    """A mapping of plain values as ``read_tree`` gives it; raises ``InputError`` for other values."""
    try:
        text = json.dumps(dict(values))
    except (TypeError, ValueError, RecursionError) as error:
        what = f"expected numbers, texts, lists and mappings: {error}"
        raise InputError(what, where=where, fix="write paths as text, and tuples as lists") from None
    root = Reader(Source(where, rank=rank), problems).read(text)
    if root is None:
        raise error_of(problems)
    return root


def _validate(root: Node, registry: Registry, problems: list[tuple[Place, Problem]]) -> Recipe | None:
    from pydantic import ValidationError

    from qplug.recipe.messages import explain

    taken = {place.order for place, _ in problems}
    named = check_names(root, registry, problems)
    check_backend(root, registry, named, problems)
    tables = (named.models, named.datasets, named.techniques)
    recipe = build_type(*(tuple(table[name] for name in sorted(table)) for table in tables))
    try:
        # through JSON: only its strict mode accepts a list for a tuple and text for an enum, and nothing else
        return recipe.model_validate_json(json.dumps(root.plain()), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        problems += [problem for problem in explain(details, root, named, recipe) if problem[0].order not in taken]
        return None


def error_of(problems: list[tuple[Place, Problem]]) -> RecipeError:
    """An error with all problems, in the order of the files."""
    ordered = sorted(problems, key=lambda problem: problem[0].order)
    return RecipeError([problem for _, problem in ordered])


def _read(path: Path) -> str:
    refuse_special(path, "recipe")
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise InputError(
            "expected a recipe, a YAML file; this is a folder", where=str(path), fix=_recipes_in(path)
        ) from None
    except FileNotFoundError:
        raise InputError("there is no such file", where=str(path), fix=_near(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    if len(raw) > MAX_BYTES:
        raise InputError(
            f"expected a recipe of at most {MAX_BYTES // 1024} KiB, received a larger file", where=str(path)
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig", errors="replace")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise InputError(f"is not UTF-8 text (byte {error.start})", where=f"{path}:{line}:{column}") from None


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either"
    return did_you_mean(path.name, [near.name for near in path.parent.glob("*.y*ml")])


def _recipes_in(path: Path) -> str:
    names = sorted(near.name for near in path.glob("*.y*ml"))
    return f"name one of its recipes: {listed(names, 8)}" if names else ""
