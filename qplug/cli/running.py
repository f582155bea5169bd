"""``qplug run`` and ``qplug validate``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qplug.cli.app import (
    Accounting,
    CacheFolder,
    Device,
    Json,
    NoCache,
    Sets,
    State,
    app,
    cache_of,
    describe,
    print_json,
    screen_of,
)
from qplug.core.errors import InputError, QplugError
from qplug.quantization.accounting import DEFAULT, convention

if TYPE_CHECKING:
    from qplug.recipe import Recipe


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(show_default=False, help="A YAML file.")],
    overrides: Sets = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to write.", show_default="runs/RECIPE-TIME")] = None,
    accounting: Accounting = DEFAULT,
    as_json: Json = False,
    device: Device = "cpu",
    cache_folder: CacheFolder = None,
    no_cache: NoCache = False,
) -> None:
    """Quantize and measure by a recipe, and write a run folder."""
    State.json = as_json
    counted_by = convention(accounting)
    from qplug.core.storage.run_folder import check_target
    from qplug.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    target = out or _default_out(recipe)
    check_target(target)

    from qplug.core.distributed import launched
    from qplug.pipeline.run import run as run_pipeline
    from qplug.report.progress import Progress
    from qplug.report.run import summary, summary_tables

    shown = launched().is_main
    with Progress(sys.stderr) as progress:
        cache = cache_of(cache_folder, no_cache)
        observers = [progress] if shown else []
        result = run_pipeline(loaded, out=target, device=device, observers=observers, cache=cache)
    if launched().count > 1:
        from qplug.training.supervised.accelerator import leave_together

        leave_together()
    if not shown:
        return
    if as_json:
        print_json(summary(result))
        return
    screen = screen_of()
    for table in summary_tables(result, counted_by):
        screen.table(table)
    for warning in result.warnings:
        screen.line(f"warning: {warning}", "yellow")


@app.command()
def validate(
    recipes: Annotated[list[Path], typer.Argument(show_default=False, help="YAML files.")],
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Check recipes and sweeps, without running them."""
    State.json = as_json
    results = [(path, _loaded(path, overrides or ())) for path in recipes]
    code = 2 if any(isinstance(result, QplugError) for _, result in results) else 0
    if as_json:
        reports = [{"recipe": str(path), **_verdict(result)} for path, result in results]
        print_json({"status": "error" if code else "ok", "exit_code": code, "recipes": reports})
    else:
        for path, result in results:
            if isinstance(result, QplugError):
                screen_of(sys.stderr).error(result)
            else:
                screen_of().line(f"{path}: ok ({_in_short(result)})")
    raise typer.Exit(code)


def _default_out(recipe: Path) -> Path:
    from datetime import datetime

    stem = f"{recipe.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    names = (stem if count == 1 else f"{stem}-{count}" for count in range(1, 1000))
    return next(path for name in names if not (path := Path("runs") / name).exists())


def _loaded(path: Path, overrides: Sequence[str]) -> Recipe | list[Recipe] | QplugError:
    """A recipe, or those of every run of a sweep."""
    from qplug.recipe import load_recipe

    try:
        return load_recipe(path, overrides)
    except InputError as error:
        from qplug.recipe.sweep import is_sweep, load_sweep  # only here: recipes are validated faster without it

        if not is_sweep(path):
            return error
    try:
        return load_sweep(path, overrides)[1]
    except InputError as error:
        return error


def _in_short(result: Recipe | list[Recipe]) -> str:
    if isinstance(result, list):
        return f"a sweep of {len(result)} runs, for qplug compare"
    return ", ".join(str(getattr(step, "use", "")) for step in result.techniques)


def _verdict(result: Recipe | list[Recipe] | QplugError) -> dict[str, Any]:
    if isinstance(result, QplugError):
        return describe(result)
    runs = {"runs": [recipe.dump() for recipe in result]} if isinstance(result, list) else {"resolved": result.dump()}
    return {"status": "ok", **runs}
