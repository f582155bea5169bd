"""Where the pages find what they document. When a module moves, its new path goes to the front of a line below."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


def first(*names: str) -> ModuleType:
    """The first of these modules that exists."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(str(error.name)):
                raise
    raise ModuleNotFoundError(f"none of {', '.join(names)} exists")


def hook_specifications() -> tuple[type, ...]:
    """The classes that hold the hooks: those of plugins, and those of runs."""
    specs = first("qplug.hooks.specs", "qplug.hooks")
    return specs.DiscoverySpecs, specs.RunSpecs


def registry() -> Any:
    """Everything that the installed plugins offer."""
    return first("qplug.hooks.registry", "qplug.registry").installed()


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of recipes."""
    return dict(first("qplug.recipe").json_schema(registry()))


def sweep_schema() -> dict[str, Any]:
    """The JSON Schema of sweeps."""
    return dict(first("qplug.recipe.sweep").Sweep.model_json_schema())


def application() -> Any:
    """The command line's typer application."""
    return first("qplug.cli").app
