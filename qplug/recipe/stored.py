"""The resolved recipe of a run folder, read without the plugins that it names."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, create_model

from qplug.core.errors import InputError, Problem
from qplug.recipe.load import error_of, read_tree
from qplug.recipe.schema import DataConfig, Recipe
from qplug.recipe.yaml_tree import Place


def read_stored_recipe(path: Path) -> dict[str, Any]:
    """The values of a resolved recipe, as ``Recipe.dump`` gives them.

    The configurations of sources and techniques are not checked: a run can be compared after its plugins are
    uninstalled. The file is read as every recipe is, so that its size and its aliases are limited.

    Raises:
        InputError: the file cannot be read, or holds no resolved recipe.
    """
    problems: list[tuple[Place, Problem]] = []
    root = read_tree(path, problems)
    if problems:
        raise error_of(problems)
    try:
        recipe = _stored_type().model_validate_json(json.dumps(root.plain()), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        what = f"holds no recipe of a run: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(what, where=str(path)) from None
    return recipe.dump()


@functools.cache
def _stored_type() -> type[Recipe]:
    """``Recipe`` with any sources and techniques, each a mapping, and with every key that a comparison reads."""
    anything = dict[str, Any]
    data = create_model(
        "StoredData",
        __base__=DataConfig,
        calibration=(anything, ...),
        evaluation=(anything, ...),
        training=(anything | None, None),
    )
    return create_model(
        "StoredRecipe",
        __base__=Recipe,
        name=(str, ...),
        seed=(int, Field(ge=0)),
        model=(anything, ...),
        data=(data, ...),
        techniques=(tuple[anything, ...], Field(min_length=1)),
    )
