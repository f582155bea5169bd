"""What every command shares: the application, common options, and how results and errors are printed."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from qplug.core.errors import InputError, QplugError, RecipeError
from qplug.quantization.accounting import CONVENTIONS

if TYPE_CHECKING:
    from qplug.cli.report.screen import Screen
    from qplug.core.storage.cache import Cache

COMMANDS = "run compare export bench validate inspect sensitivity techniques plugins schema zoo new-plugin".split()
"""Every command, in the order in which a newcomer needs them; each has a module of its name."""


class Ordered(TyperGroup):
    """Commands in the order of ``COMMANDS``."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return sorted(super().list_commands(ctx), key=COMMANDS.index)


app = typer.Typer(
    name="qplug",
    cls=Ordered,
    help="Quantize vision models: every paper's technique under one protocol.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the recipe; may be given more than once."),
]
CacheFolder = Annotated[
    Path | None, typer.Option("--cache", help="Folder that keeps statistics for other runs.", show_default="the user's")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Compute everything anew, and keep nothing.")]
Accounting = Annotated[str, typer.Option(help=f"How MB and BOPs are counted: {', '.join(CONVENTIONS)}.")]
Device = Annotated[str, typer.Option(help="Where to compute, as torch names it.")]


class State:
    """What ``main`` must know of the invocation to report an error in its form."""

    traceback = False
    json = False


def screen_of(stream: TextIO | None = None) -> Screen:
    """A screen on ``stream``, or on standard output."""
    from qplug.cli.report.screen import Screen

    return Screen(stream or sys.stdout)


def cache_of(folder: Path | None, unwanted: bool) -> Cache | None:
    """The cache in ``folder``, or in the user's own; ``None`` where it is unwanted."""
    if unwanted:
        return None
    from platformdirs import user_cache_path

    from qplug.core.storage.cache import Cache

    return Cache(folder or user_cache_path("qplug"))


def print_json(value: Any) -> None:
    """Print strict JSON."""
    from qplug.core.storage.run_folder import to_json

    print(to_json(value), end="")


def describe(error: QplugError) -> dict[str, Any]:
    """An error as ``--json`` prints it."""
    parts = error.problems if isinstance(error, RecipeError) else [error]
    problems = [{"where": part.where, "what": part.what, "fix": part.fix} for part in parts]
    return {"status": "error", "exit_code": error.exit_code, "problems": problems}


def report_error(error: QplugError) -> int:
    """Print an error in the invocation's form; returns the exit code.

    A wrong input is wrong for every process of a launch: the first one says so.
    """
    from qplug.core.distributed import launched

    with suppress(InputError):  # what a launcher said may itself be wrong
        if isinstance(error, InputError) and not launched().is_main:
            return error.exit_code
    screen_of(sys.stderr).error(error)
    if State.json:
        print_json(describe(error))
    return error.exit_code


def model_source(model: str, checkpoint: Path | None) -> Any:
    """A source for MODEL: import paths have a colon, the zoo's models are known by name, and timm has the rest."""
    from typing import get_args

    from pydantic import ValidationError

    from qplug.hooks.registry import installed

    sources = installed().models
    zoo = get_args(sources["zoo"].Config.model_fields["name"].annotation) if "zoo" in sources else ()
    kind = "import" if ":" in model else "zoo" if model in zoo else "timm"
    if kind not in sources:
        raise InputError(f"the model source '{kind}' is not installed", fix="'qplug plugins' says why")
    values: dict[str, Any] = {"source": kind, "target" if kind == "import" else "name": model}
    if checkpoint is not None:
        values["checkpoint_path"] = str(checkpoint)
    try:
        return sources[kind](sources[kind].Config(**values))
    except ValidationError as error:
        first = error.errors()[0]
        what = first["msg"].removeprefix("Value error, ")
        raise InputError(": ".join(filter(None, [".".join(map(str, first["loc"])), what])), where=model) from None
