"""Shared by all commands: the application, common options, and the printing of results and errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from qplug.cli.streams import guarded, results
from qplug.core.errors import InputError, QplugError, RecipeError
from qplug.core.text import Alarm
from qplug.quantization.accounting import CONVENTIONS

if TYPE_CHECKING:
    from qplug.cli.report.screen import Screen, Table
    from qplug.core.storage.cache import Cache

COMMANDS = "run compare verify export bench init validate inspect sensitivity recipes techniques plugins schema".split()
COMMANDS += ["cache", "zoo", "new-plugin"]
"""All commands, in the order in which a newcomer needs them; each has a module of its name."""


class Ordered(TyperGroup):
    """Commands in the order of ``COMMANDS``."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands."""
        return sorted(super().list_commands(ctx), key=COMMANDS.index)


class Guarded(TyperCommand):
    """A command during which only results are written to standard output."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with guarded():
            return super().invoke(ctx)


class Application(typer.Typer):
    """typer's, whose commands are ``Guarded``."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Register a command, as typer does."""
        return super().command(name, cls=Guarded, **options)


app = Application(
    name="qplug",
    cls=Ordered,
    help="Quantize vision models with techniques from papers, under one protocol.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable."),
]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder of cached calibration results.", show_default="in the user's cache folder"),
]
CacheLimit = Annotated[
    int | None,
    typer.Option(
        "--cache-limit",
        metavar="MB",
        min=1,
        help="Size limit of the cache, in MB; the least recently used results are removed.",
        show_default="8192",
    ),
]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Run the code that the recipe names, also from outside the installed packages."),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither read nor write the cache.")]
Accounting = Annotated[str, typer.Option(help=f"Convention that counts MB and BOPs: {', '.join(CONVENTIONS)}.")]
Device = Annotated[str, typer.Option(help="Device to compute on: cpu, cuda or cuda:1, as in torch.")]


class State:
    """Options of the invocation that decide how ``main`` prints an error."""

    traceback = False
    json = False
    written = ""
    """What Ctrl-C says of the files of the command."""


def screen_of(stream: TextIO | None = None) -> Screen:
    """A screen on ``stream``; the one for results by default."""
    from qplug.cli.report.screen import Screen

    return Screen(stream or results())


def show(tables: Iterable[Table], warnings: Iterable[str] = ()) -> None:
    """Print tables, and below them the warnings, alarms first and in bold."""
    screen = screen_of()
    for table in tables:
        screen.table(table)
    for warning in sorted(warnings, key=lambda warning: not isinstance(warning, Alarm)):
        screen.line(f"warning: {warning}", "bold red" if isinstance(warning, Alarm) else "yellow", wrap=True)


def allowed_code(flag: bool) -> bool | tuple[str, ...]:
    """All code with ``--allow-code``, else that of the modules which the user's configuration trusts."""
    from qplug.core.user_config import user_config

    return flag or user_config().trusted


def cache_of(folder: Path | None, disabled: bool, limit_mb: int | None = None) -> Cache | None:
    """The cache in ``folder``, by default in the user's cache folder; ``None`` if it is disabled.

    The limit is the given one, or that of the user's configuration, or the default.
    """
    if disabled:
        return None
    from platformdirs import user_cache_path

    from qplug.core.storage.cache import LIMIT_MB, Cache
    from qplug.core.user_config import user_config

    return Cache(folder or user_cache_path("qplug"), limit_mb or user_config().cache_limit_mb or LIMIT_MB)


def print_json(value: Any) -> None:
    """Print strict JSON."""
    from qplug.core.storage.run_folder import to_json

    text = to_json(value)
    if not text.isprintable():  # JSON's own escapes for what a terminal would obey or not show
        text = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    results().write(text)


def describe(error: QplugError) -> dict[str, Any]:
    """An error as ``--json`` prints it."""
    parts = error.problems if isinstance(error, RecipeError) else [error]
    problems = [{"where": part.where, "what": part.what, "fix": part.fix} for part in parts]
    return {"status": "error", "exit_code": error.exit_code, "problems": problems}


def report_error(error: QplugError) -> int:
    """Print an error as text or as JSON; returns the exit code.

    A wrong input fails in every process of a distributed launch; only the main process prints it.
    """
    from qplug.core.distributed import launched

    with suppress(InputError):  # the launcher's environment variables may be wrong too
        if isinstance(error, InputError) and not launched().is_main:
            return error.exit_code
    screen_of(sys.stderr).error(error)
    if State.json:
        print_json(describe(error))
    return error.exit_code
