"""``qplug validate``: check recipes and sweeps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qplug.cli.app import Json, Sets, State, app, describe, print_json, screen_of
from qplug.core.errors import InputError, QplugError

if TYPE_CHECKING:
    from qplug.recipe import Recipe


@app.command()
def validate(
    recipes: Annotated[list[Path], typer.Argument(show_default=False, help="Recipes and sweeps, YAML files.")],
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Check recipes and sweeps without running them."""
    State.json = as_json
    results = [(path, _loaded(path, overrides or ())) for path in recipes]
    code = 2 if any(isinstance(result, QplugError) for _, result in results) else 0
    if as_json:
        reports = [{"recipe": str(path), **_report(result)} for path, result in results]
        print_json({"status": "error" if code else "ok", "exit_code": code, "recipes": reports})
    else:
        for path, result in results:
            if isinstance(result, QplugError):
                screen_of(sys.stderr).error(result)
            else:
                screen_of().line(f"{path}: ok ({_in_words(result)})")
    raise typer.Exit(code)


def _loaded(path: Path, overrides: Sequence[str]) -> Recipe | list[Recipe] | QplugError:
    """The recipe; for a sweep, the recipe of every run; or the error."""
    from qplug.recipe.load import SweepGiven, load_recipe

    try:
        return load_recipe(path, overrides, allow_code=True)
    except SweepGiven:
        from qplug.recipe.sweep import load_sweep  # imported late, so that a valid recipe is checked faster
    except InputError as error:
        return error
    try:
        return load_sweep(path, overrides, allow_code=True)[1]
    except InputError as error:
        return error


def _in_words(result: Recipe | list[Recipe]) -> str:
    if isinstance(result, list):
        return f"a sweep of {len(result)} runs; run it by qplug compare"
    return ", ".join(str(getattr(step, "use", "")) for step in result.techniques) + _foreign(result)


def _foreign(recipe: Recipe) -> str:
    """What of a recipe needs ``--allow-code``; modules of installed packages are not imported to find out."""
    from qplug.hooks.registry import installed
    from qplug.recipe.allow_code import outside

    modules = outside(recipe, installed())
    return f"; a run needs --allow-code, because it executes {', '.join(modules)}" if modules else ""


def _report(result: Recipe | list[Recipe] | QplugError) -> dict[str, Any]:
    if isinstance(result, QplugError):
        return describe(result)
    runs = {"runs": [recipe.dump() for recipe in result]} if isinstance(result, list) else {"resolved": result.dump()}
    return {"status": "ok", **runs}
