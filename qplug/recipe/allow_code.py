"""Code that a recipe names and that would run: it needs the user's word."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeAlias

from qplug.core.component import Component, Config
from qplug.core.errors import Problem, RecipeError
from qplug.core.user_config import config_path
from qplug.hooks.registry import Registry
from qplug.recipe.schema import Recipe
from qplug.recipe.yaml_tree import Node, Place

AllowCode: TypeAlias = bool | Collection[str]
"""Whether all code may run, or the names of the outermost modules whose code may."""


class CodeNotAllowed(RecipeError):
    """A recipe would run code without the user's word."""


def foreign_code(root: Node, recipe: Recipe, registry: Registry, allowed: AllowCode) -> list[tuple[Place, Problem]]:
    """A problem for each component that would run code without the user's word."""
    problems: list[tuple[Place, Problem]] = []
    if allowed is True:
        return problems
    for loc, component, config in _components(recipe, registry):
        found = component.foreign_code(config, importing=True)
        if found is None or (allowed and found.module in allowed):
            continue
        node = root
        for step in (*loc, found.key):
            node = node.child(step) or node
        fix = f"if you trust it, add --allow-code (in Python, allow_code=True), or add '{found.module}' to the list "
        fix += f"'trusted' in {config_path()}"
        what = f"{'.'.join(map(str, (*loc, found.key)))}: {found.what}; a run would execute it"
        problems.append((node.place, node.place.problem(what, fix)))
    return problems


def outside(recipe: Recipe, registry: Registry) -> list[str]:
    """Modules outside the installed packages whose code a run of ``recipe`` executes; nothing is imported."""
    found = [component.foreign_code(config, importing=False) for _, component, config in _components(recipe, registry)]
    return sorted({code.module for code in found if code is not None})


def _components(recipe: Recipe, registry: Registry) -> Iterator[tuple[tuple[str | int, ...], type[Component], Config]]:
    yield ("model",), registry.models[recipe.model.source], recipe.model  # type: ignore[attr-defined]  # the tag
    for role in ("calibration", "evaluation", "training"):
        data = getattr(recipe.data, role)
        if data is not None:
            yield ("data", role), registry.datasets[data.source], data
    for index, step in enumerate(recipe.techniques):
        yield ("techniques", index), registry.techniques[step.use], step  # type: ignore[attr-defined]  # the tag
