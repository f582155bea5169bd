"""The parts of qplug that the generated pages document."""

from __future__ import annotations

from typing import Any

from qplug.cli import app
from qplug.hooks.registry import installed
from qplug.hooks.specs import DiscoverySpecs, RunSpecs
from qplug.recipe import json_schema
from qplug.recipe.sweep import Sweep


def hook_specifications() -> tuple[type, ...]:
    """The classes that hold the hooks: those of plugins, and those of runs."""
    return DiscoverySpecs, RunSpecs


def registry() -> Any:
    """Everything that the installed plugins offer."""
    return installed()


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of recipes."""
    return json_schema(installed())


def sweep_schema() -> dict[str, Any]:
    """The JSON Schema of sweeps."""
    return Sweep.model_json_schema()


def application() -> Any:
    """The command line's typer application."""
    return app
