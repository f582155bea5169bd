"""The command line. Only here and in ``qplug.report`` is anything printed; imports wait until a command needs them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from qplug.errors import InputError, QplugError, RecipeError

if TYPE_CHECKING:
    from qplug.recipe import Recipe
    from qplug.report.screen import Screen

INTERRUPTED = 130  # what some versions of typer end with after Ctrl-C, and others with 1

app = typer.Typer(
    name="qplug",
    help="Quantise vision models: every paper's technique under one protocol.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
zoo = typer.Typer(help="The embedded models.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(zoo, name="zoo")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the recipe; may be given more than once."),
]


class _State:
    """What ``main`` must know of the invocation to report an error in its form."""

    traceback = False
    json = False


def _version(wanted: bool) -> None:
    if wanted:
        from qplug import __version__

        print(f"qplug {__version__}")
        raise typer.Exit


@app.callback()
def _qplug(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where in the code an error came from.")] = False,
) -> None:
    _State.traceback = traceback


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(show_default=False, help="A YAML file.")],
    overrides: Sets = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to write.", show_default="runs/RECIPE-TIME")] = None,
    as_json: Json = False,
    device: Annotated[str, typer.Option(help="Where to compute, as torch names it.")] = "cpu",
) -> None:
    """Quantise and measure by a recipe, and write a run folder."""
    _State.json = as_json
    from qplug.recipe import load_recipe
    from qplug.record import check_target

    loaded = load_recipe(recipe, overrides or ())
    target = out or _default_out(recipe)
    check_target(target)

    from qplug.pipeline import run as run_pipeline
    from qplug.report.progress import Progress
    from qplug.report.run import summary, summary_tables

    with Progress(sys.stderr) as progress:
        result = run_pipeline(loaded, out=target, device=device, observers=[progress])
    if as_json:
        _print_json(summary(result))
        return
    screen = _screen()
    for table in summary_tables(result):
        screen.table(table)
    for warning in result.warnings:
        screen.line(f"warning: {warning}", "yellow")


@app.command()
def validate(
    recipes: Annotated[list[Path], typer.Argument(show_default=False, help="YAML files.")],
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Check recipes, without running them."""
    _State.json = as_json
    results = [(path, _loaded(path, overrides or ())) for path in recipes]
    code = 2 if any(isinstance(result, QplugError) for _, result in results) else 0
    if as_json:
        reports = [{"recipe": str(path), **_verdict(result)} for path, result in results]
        _print_json({"status": "error" if code else "ok", "exit_code": code, "recipes": reports})
    else:
        for path, result in results:
            if isinstance(result, QplugError):
                _screen(sys.stderr).error(result)
            else:
                _screen().line(f"{path}: ok ({', '.join(str(getattr(step, 'use', '')) for step in result.techniques)})")
    raise typer.Exit(code)


@app.command()
def plugins(as_json: Json = False) -> None:
    """List the plugins, those that failed to load too."""
    _State.json = as_json
    from qplug.registry import installed
    from qplug.report import catalogue

    if as_json:
        _print_json({"plugins": catalogue.plugins(installed())})
    else:
        _screen().table(catalogue.plugins_table(installed()))


@app.command()
def techniques(
    name: Annotated[str | None, typer.Argument(show_default=False, help="One technique.")] = None,
    as_json: Json = False,
) -> None:
    """List the techniques, or show one with its parameters."""
    _State.json = as_json
    from qplug.registry import installed
    from qplug.report import catalogue

    if as_json and name:
        _print_json(catalogue.technique(installed(), name))
    elif as_json:
        _print_json({"techniques": catalogue.techniques(installed())})
    else:
        screen = _screen()
        for table in (
            catalogue.technique_tables(installed(), name) if name else [catalogue.techniques_table(installed())]
        ):
            screen.table(table)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors.

    Every installed plugin's sources, techniques and backends are in it.
    """
    from qplug.recipe import json_schema
    from qplug.registry import installed

    _print_json(json_schema(installed()))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="An embedded model, timm's name, or module:function.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights to load.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Show what of a model can be quantised.

    Sites, kinds, shapes and MACs, and what stays in float.
    """
    _State.json = as_json
    source = _model_source(model, checkpoint)
    from qplug.pipeline import inspect as inspect_model
    from qplug.report.inspection import inspection, inspection_tables

    found = inspect_model(source)
    if as_json:
        _print_json(inspection(found, model))
        return
    screen = _screen()
    for table in inspection_tables(found, model):
        screen.table(table)


@zoo.command("train")
def zoo_train(
    name: Annotated[str, typer.Argument(help="An embedded model, such as vit_digits.")],
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the data.", show_default="the model's own")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seeds weights, order and augmentation.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The safetensors file to write.", show_default="NAME.safetensors")
    ] = None,
) -> None:
    """Train an embedded model again, and print its accuracy."""
    from qplug.models.training import train
    from qplug.report.progress import Progress

    out = out or Path(f"{name}.safetensors")
    with Progress(sys.stderr) as progress:

        def advance(done: int, total: int) -> None:
            progress.advance(f"train {name}", done, total)

        accuracy = train(name, out, epochs=epochs, seed=seed, progress=advance)
    _screen().line(f"{name}: {100 * accuracy:.2f} % top-1 on images that training never saw; written to {out}")


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(help="The distribution's name, such as qplug-mine.")],
    folder: Annotated[Path, typer.Option("--dir", help="The folder to make it in.")] = Path(),
) -> None:
    """Write a plugin of your own, which works as it is."""
    from qplug import scaffold

    path = scaffold.new_plugin(name, folder)
    _screen().line(f"wrote {path}; install it with: pip install -e {path}")


def _model_source(model: str, checkpoint: Path | None) -> Any:
    """A source for MODEL: import paths have a colon, embedded models are known by name, and timm has the rest."""
    from typing import get_args

    from pydantic import ValidationError

    from qplug.registry import installed

    sources = installed().models
    embedded = get_args(sources["zoo"].Config.model_fields["name"].annotation) if "zoo" in sources else ()
    kind = "import" if ":" in model else "zoo" if model in embedded else "timm"
    if kind not in sources:
        raise InputError(f"the model source '{kind}' is not installed", fix="'qplug plugins' says why")
    values: dict[str, Any] = {"source": kind, "target" if kind == "import" else "name": model}
    if checkpoint is not None:
        values["checkpoint_path"] = str(checkpoint)
    try:
        return sources[kind](sources[kind].Config(**values))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", where=model) from None


def _default_out(recipe: Path) -> Path:
    from datetime import datetime

    stem = f"{recipe.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    names = (stem if count == 1 else f"{stem}-{count}" for count in range(1, 1000))
    return next(path for name in names if not (path := Path("runs") / name).exists())


def _loaded(path: Path, overrides: Sequence[str]) -> Recipe | QplugError:
    from qplug.recipe import load_recipe

    try:
        return load_recipe(path, overrides)
    except InputError as error:
        return error


def _verdict(result: Recipe | QplugError) -> dict[str, Any]:
    return _describe(result) if isinstance(result, QplugError) else {"status": "ok", "resolved": result.dump()}


def _screen(stream: TextIO | None = None) -> Screen:
    from qplug.report.screen import Screen

    return Screen(stream or sys.stdout)


def _print_json(value: Any) -> None:
    from qplug.record import to_json

    print(to_json(value), end="")


def _describe(error: QplugError) -> dict[str, Any]:
    parts = error.problems if isinstance(error, RecipeError) else [error]
    problems = [{"where": part.where, "what": part.what, "fix": part.fix} for part in parts]
    return {"status": "error", "exit_code": error.exit_code, "problems": problems}


def _report(error: QplugError) -> int:
    _screen(sys.stderr).error(error)
    if _State.json:
        _print_json(_describe(error))
    return error.exit_code


def _terminated(number: int, _: FrameType | None) -> None:
    print("stopped by a signal", file=sys.stderr)
    raise SystemExit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends with 0 where it did its work, 2 where the input is wrong, and 1 otherwise."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows "?" instead of failing
    with suppress(ValueError):  # only the main thread may
        signal.signal(signal.SIGTERM, _terminated)
    _State.traceback = _State.json = False
    try:
        app(args=arguments, prog_name="qplug")
    except SystemExit as end:
        sys.exit(1 if end.code == INTERRUPTED else end.code)
    except QplugError as error:
        if _State.traceback:
            raise
        sys.exit(_report(error))
    except Exception as error:  # whatever else goes wrong: a short message and exit code 1
        if _State.traceback:
            raise
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        _screen(sys.stderr).line(f"unexpected error: {text}\n  → 'qplug --traceback …' shows where it came from", "red")
        sys.exit(1)
