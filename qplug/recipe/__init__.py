"""Recipes: YAML files that define a run. Validation reports every problem with its place in the file."""

from __future__ import annotations

from qplug.recipe.allow_code import AllowCode
from qplug.recipe.load import load_recipe
from qplug.recipe.report import render_problems
from qplug.recipe.schema import (
    ActivationConfig,
    DataConfig,
    Override,
    Quantize,
    Recipe,
    Scope,
    TensorConfig,
    WeightConfig,
    json_schema,
    recipe_type,
)

__all__ = [
    "ActivationConfig",
    "AllowCode",
    "DataConfig",
    "Override",
    "Quantize",
    "Recipe",
    "Scope",
    "TensorConfig",
    "WeightConfig",
    "json_schema",
    "load_recipe",
    "recipe_type",
    "render_problems",
]
