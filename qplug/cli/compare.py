"""``qplug compare``: runs, recipes and sweeps in one table."""

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
from qplug.core.errors import InputError
from qplug.quantization.accounting import DEFAULT, convention

if TYPE_CHECKING:
    from qplug.analysis.compare.answers import Answers
    from qplug.cli.report.screen import Table
    from qplug.core.storage.cache import Cache
    from qplug.core.storage.run_folder import Run
    from qplug.recipe import Recipe


@app.command()
def compare(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(show_default=False, help="Run folders, folders of run folders, recipes, or sweeps."),
    ] = None,
    overrides: Sets = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds of each recipe, such as 0,1,2.", show_default="the recipe's own")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where finished runs are sought and new ones written.")] = Path("runs"),
    sort: Annotated[
        str | None, typer.Option(help="A key of --json, best first; 'none' keeps the order.", show_default="top1")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only rows for which this holds; also != < <= > >=, and patterns."),
    ] = None,
    diff: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Show where the plans of two runs differ, site by site."),
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="Show published figures beside the measured ones.")] = False,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_html: Annotated[bool, typer.Option("--html", help="Print a page of HTML.")] = False,
    accounting: Accounting = DEFAULT,
    device: Device = "cpu",
    cache_folder: CacheFolder = None,
    no_cache: NoCache = False,
) -> None:
    """Compare runs, recipes and sweeps, and mark ties.

    Recipes that no finished run answers are run first.
    """
    State.json = as_json
    given = {"--json": as_json, "--csv": as_csv, "--markdown": as_markdown, "--html": as_html}
    forms = [option for option, wanted in given.items() if wanted]
    if len(forms) > 1:
        raise InputError("choose one of --json, --csv, --markdown and --html")
    if diff and (paths or sort or where or paper):
        raise InputError("--diff names its two runs or recipes itself, and takes no --sort, --where or --paper")
    counted_by = convention(accounting)
    wanted = list(diff or paths or ())
    if not wanted:
        raise InputError("name runs, recipes or sweeps to compare, or two of them with --diff")
    if (overrides or seeds) and not any(map(_is_yaml, wanted)):
        raise InputError("--set and --seeds are for recipes, and a finished run is as it is")
    gather = _Gather(overrides or (), _seeds(seeds, overrides or ()), runs, device, cache_of(cache_folder, no_cache))
    if diff:
        _show_diff(gather.one(diff[0]), gather.one(diff[1]), forms)
        return

    from qplug.analysis.compare import group
    from qplug.analysis.compare.choose import condition, in_order
    from qplug.cli.report import comparison
    from qplug.cli.report.screen import Table

    checks = [condition(text) for text in where or ()]
    answers = gather.all(wanted)
    if not answers.runs:
        raise InputError("a run is needed, and 0 can be read")
    groups = group(answers.runs, answers.recipes)
    sort = sort or ("none" if gather.titles else "top1")
    rows = in_order(comparison.values(groups, counted_by), sort, comparison.BEST_IS_LEAST)
    rows = [row for row in rows if all(holds(row) for holds in checks)]
    if not rows:
        raise InputError("no row is left", where="--where", fix="leave out a condition; --json shows every value")
    tables = [Table(title) for title in gather.titles] + comparison.comparison_tables(groups, rows, counted_by)
    if paper:
        tables.append(comparison.paper_table(rows))
    left_out = [describe(error) for error in answers.failures]
    _print(forms, tables, rows, {"status": "done", "titles": gather.titles, "rows": rows, "left_out": left_out})
    raise typer.Exit(answers.failures[0].exit_code if answers.failures else 0)


class _Gather:
    """Paths → runs; recipes that nothing answers are run.

    ``titles`` are those of the sweeps, which also say in which order to show their rows.
    """

    def __init__(
        self, overrides: Sequence[str], seeds: Sequence[int], runs: Path, device: str, cache: Cache | None
    ) -> None:
        self.titles: list[str] = []
        self._overrides, self._seeds = overrides, seeds
        self._runs, self._device, self._cache = runs, device, cache

    def all(self, paths: Sequence[Path]) -> Answers:
        """The runs of all paths, finished ones first; what could not become one is said, and left out."""
        from qplug.analysis.compare.answers import Answers, answer, read_all
        from qplug.cli.report.progress import Progress

        recipes = [recipe for path in paths if _is_yaml(path) for recipe in self._recipes(path)]
        found, asked = read_all([path for path in paths if not _is_yaml(path)]), Answers()
        if recipes:
            with Progress(sys.stderr) as progress:
                asked = answer(
                    recipes,
                    self._runs,
                    device=self._device,
                    cache=self._cache,
                    observers=[progress],
                    announce=screen_of(sys.stderr).line,
                )
        for error in (*found.failures, *asked.failures):
            screen_of(sys.stderr).line(f"left out: {error}", "yellow")
        return Answers(found.runs + asked.runs, asked.recipes, found.failures + asked.failures)

    def one(self, path: Path) -> Run:
        """The run of ``path``, which must be of one alone."""
        found = self.all([path]).runs
        if len(found) != 1:
            raise InputError(f"one run is needed on each side of --diff, and {len(found)} can be read", where=str(path))
        return found[0]

    def _recipes(self, path: Path) -> list[Recipe]:
        from qplug.recipe import load_recipe
        from qplug.recipe.sweep import is_sweep, load_sweep

        if is_sweep(path):
            title, recipes = load_sweep(path, self._overrides, seeds=self._seeds)
            self.titles.append(title)
            return recipes
        recipe = load_recipe(path, self._overrides)
        return [recipe.model_copy(update={"seed": seed}) for seed in self._seeds or [recipe.seed]]


def _is_yaml(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml")


def _seeds(text: str | None, overrides: Sequence[str]) -> list[int]:
    if text is None:
        return []
    from qplug.recipe.sweep import LARGEST_SEED

    if any(override.partition("=")[0].strip() == "seed" for override in overrides):
        raise InputError("--seeds and --set seed=… both say which seeds to run", fix="leave one of them out")
    if not all(part.strip().isdecimal() and int(part) <= LARGEST_SEED for part in text.split(",")):
        what = f"expected whole numbers such as 0,1,2 up to {LARGEST_SEED}, received {text!r}"
        raise InputError(what, where="--seeds")
    return list(dict.fromkeys(int(part) for part in text.split(",")))


def _show_diff(one: Run, other: Run, forms: Sequence[str]) -> None:
    from dataclasses import asdict

    from qplug.analysis.compare.plans import plan_differences
    from qplug.cli.report.difference import difference_tables, other_things

    found = plan_differences(one.plan, other.plan)
    rows = [asdict(difference) for difference in found]
    value = {"status": "done", "differences": rows, "notes": other_things(one, other)}
    _print(forms, difference_tables(found, one, other), rows, value)


def _print(forms: Sequence[str], tables: Sequence[Table], rows: Sequence[dict[str, Any]], value: Any) -> None:
    """In the form that was asked for: tables, or ``rows`` as comma-separated values, or ``value`` as JSON."""
    from qplug.cli.report import formats

    if "--json" in forms:
        print_json(value)
    elif "--csv" in forms:
        print(formats.comma_separated(rows), end="")
    elif "--markdown" in forms:
        print(formats.markdown(tables), end="")
    elif "--html" in forms:
        print(formats.page(tables, "qplug compare"), end="")
    else:
        screen = screen_of()
        for table in tables:
            screen.table(table)
