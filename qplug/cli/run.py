"""``qplug run``: quantize a model by a recipe and measure it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qplug.cli.app import (
    Accounting,
    AllowCode,
    CacheFolder,
    CacheLimit,
    Device,
    Json,
    NoCache,
    Sets,
    State,
    allowed_code,
    app,
    cache_of,
    print_json,
    screen_of,
    show,
)
from qplug.cli.model_and_data import Data, ModelName
from qplug.cli.model_option import Checkpoint
from qplug.quantization.accounting import DEFAULT, convention

if TYPE_CHECKING:
    from qplug.recipe import AllowCode as Allowed, Recipe


@app.command()
def run(
    recipe: Annotated[
        Path, typer.Argument(show_default=False, help="Recipe: a YAML file, or a name that 'qplug recipes' lists.")
    ],
    model: ModelName = None,
    data: Data = None,
    checkpoint: Checkpoint = None,
    overrides: Sets = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder to write.", show_default="runs/RECIPE-TIME-PROCESS")
    ] = None,
    accounting: Accounting = DEFAULT,
    as_json: Json = False,
    device: Device = "cpu",
    cache_folder: CacheFolder = None,
    no_cache: NoCache = False,
    cache_limit: CacheLimit = None,
    allow_code: AllowCode = False,
) -> None:
    """Quantize a model by a recipe and measure it.

    Writes a run folder with the results. The first run of your own: qplug run w8a8 --model timm:resnet18 --data FOLDER.
    """
    State.json = as_json
    counted_by = convention(accounting)
    from qplug.core.storage.run_folder import check_target

    loaded = _loaded(recipe, model, checkpoint, data, overrides or (), allowed_code(allow_code))
    target = out or _default_out(recipe)
    check_target(target)
    State.written = "nothing was written"

    from qplug.cli.report.progress import Progress, loading
    from qplug.cli.report.run import run_summary, summary_tables
    from qplug.core.distributed import launched

    with loading(sys.stderr):
        from qplug.pipeline.run import run as run_pipeline

    is_main = launched().is_main
    with Progress(sys.stderr) as progress:
        cache = cache_of(cache_folder, no_cache, cache_limit)
        observers = [progress] if is_main else []
        result = run_pipeline(loaded, out=target, device=device, observers=observers, cache=cache)
    State.written = f"the run is in {target}"
    if launched().count > 1:
        from qplug.training.supervised.accelerator import destroy_process_group

        destroy_process_group()
    if not is_main:
        return
    if as_json:
        print_json(run_summary(result))
        return
    show(summary_tables(result, counted_by), result.warnings)


def _loaded(
    recipe: Path,
    model: str | None,
    checkpoint: Path | None,
    data: Path | None,
    overrides: Sequence[str],
    allow_code: Allowed,
) -> Recipe:
    """The recipe with what ``--model``, ``--data`` and ``--set`` change; says what was found."""
    from qplug.recipe import load_recipe

    if model is None and data is None and checkpoint is None:
        return load_recipe(recipe, overrides, allow_code=allow_code)
    from qplug.cli.model_and_data import given

    found = given(load_recipe(recipe, allow_code=allow_code), model, checkpoint, data, allow_code=allow_code)
    for note in found.notes:
        screen_of(sys.stderr).line(note, wrap=True)
    return load_recipe(recipe, [*found.options(), *overrides], allow_code=allow_code)


def _default_out(recipe: Path) -> Path:
    """``runs/RECIPE-TIME-PROCESS``, which no other process takes; with a number appended if that folder exists."""
    import os
    from datetime import datetime

    stem = f"{recipe.stem}-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    names = (stem if count == 1 else f"{stem}-{count}" for count in range(1, 1000))
    return next(path for name in names if not (path := Path("runs") / name).exists())
