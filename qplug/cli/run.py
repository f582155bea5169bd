"""``qplug run``: quantize and measure by a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    print_json,
    screen_of,
)
from qplug.quantization.accounting import DEFAULT, convention

if TYPE_CHECKING:
    pass


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

    from qplug.cli.report.progress import Progress
    from qplug.cli.report.run import summary, summary_tables
    from qplug.core.distributed import launched
    from qplug.pipeline.run import run as run_pipeline

    shown = launched().is_main
    with Progress(sys.stderr) as progress:
        cache = cache_of(cache_folder, no_cache)
        observers = [progress] if shown else []
        result = run_pipeline(loaded, out=target, device=device, observers=observers, cache=cache)
    if launched().count > 1:
        from qplug.training.supervised.accelerator import destroy_process_group

        destroy_process_group()
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


def _default_out(recipe: Path) -> Path:
    from datetime import datetime

    stem = f"{recipe.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    names = (stem if count == 1 else f"{stem}-{count}" for count in range(1, 1000))
    return next(path for name in names if not (path := Path("runs") / name).exists())
