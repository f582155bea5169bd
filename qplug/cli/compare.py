"""``qplug compare``: runs, recipes and sweeps in one table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    describe,
    print_json,
    screen_of,
    show,
)
from qplug.cli.streams import results
from qplug.core.errors import InputError
from qplug.quantization.accounting import DEFAULT, convention

if TYPE_CHECKING:
    from qplug.analysis.compare.load_runs import LoadedRuns
    from qplug.cli.report.screen import Table
    from qplug.core.storage.cache import Cache
    from qplug.pipeline.read_run import Run
    from qplug.recipe import Recipe


@app.command()
def compare(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(show_default=False, help="Run folders, folders of run folders, recipes, or sweeps."),
    ] = None,
    overrides: Sets = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds to run each recipe with, such as 0,1,2.", show_default="the recipe's seed")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of run folders, to read and to write.")] = Path("runs"),
    sort: Annotated[
        str | None,
        typer.Option(help="Sort by this key of --json, best first; 'none' keeps the order.", show_default="top1"),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Show only these rows; also !=, <, <=, >, >= and patterns such as name=mptq*."
        ),
    ] = None,
    diff: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Show which sites two runs or recipes quantize differently."),
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="Show published figures beside the measured figures.")] = False,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_html: Annotated[bool, typer.Option("--html", help="Print an HTML page.")] = False,
    accounting: Accounting = DEFAULT,
    device: Device = "cpu",
    cache_folder: CacheFolder = None,
    no_cache: NoCache = False,
    cache_limit: CacheLimit = None,
    allow_code: AllowCode = False,
) -> None:
    """Compare runs, recipes and sweeps in one table.

    Recipes without a finished run are run first.
    """
    State.json = as_json
    options = {"--json": as_json, "--csv": as_csv, "--markdown": as_markdown, "--html": as_html}
    formats = [option for option, given in options.items() if given]
    if len(formats) > 1:
        raise InputError(f"received {' and '.join(formats)}", fix="choose one of --json, --csv, --markdown and --html")
    if diff and (paths or sort or where or paper):
        raise InputError("--diff compares its own two runs or recipes, and takes no PATHS, --sort, --where or --paper")
    counted_by = convention(accounting)
    inputs = list(diff or paths or ())
    if not inputs:
        raise InputError("expected run folders, recipes or sweeps to compare, received none")
    if (overrides or seeds) and not any(map(_is_yaml, inputs)):
        raise InputError("--set and --seeds change recipes, and only finished runs are given")
    cache = cache_of(cache_folder, no_cache, cache_limit)
    loader = _RunLoader(overrides or (), _seeds(seeds, overrides or ()), runs, device, cache, allowed_code(allow_code))
    if diff:
        _show_diff(loader.one(diff[0]), loader.one(diff[1]), formats)
        return

    from qplug.analysis.compare import group
    from qplug.analysis.compare.choose import condition, in_order
    from qplug.cli.report import comparison
    from qplug.cli.report.screen import Table
    from qplug.hooks.registry import installed

    checks = [condition(text) for text in where or ()]
    State.written = f"the runs that finished are in {runs}"
    loaded = loader.all(inputs, lambda found: _check_keys(found, checks, sort))
    if not loaded.runs:
        raise InputError("none of the runs can be read, so there is nothing to compare")
    groups = group(loaded.runs, loaded.recipes)
    sort = sort or ("none" if loader.titles else "top1")
    least = comparison.BEST_IS_LEAST | {name for name, metric in installed().metrics.items() if metric.best_is_least}
    rows = in_order(comparison.values(groups, counted_by), sort, least)
    rows = [row for row in rows if all(holds(row) for holds in checks)]
    if not rows:
        raise InputError("no row matches", where="--where", fix="leave out a condition; --json shows every value")
    tables = [Table(title) for title in loader.titles] + comparison.comparison_tables(groups, rows, counted_by)
    if paper:
        tables.append(comparison.paper_table(rows))
    left_out = [describe(error) for error in loaded.failures]
    _print(formats, tables, rows, {"status": "done", "titles": loader.titles, "rows": rows, "left_out": left_out})
    raise typer.Exit(loaded.failures[0].exit_code if loaded.failures else 0)


class _RunLoader:
    """Paths → runs; a recipe without a finished run is run.

    ``titles`` are the titles of the sweeps. A sweep keeps the order of its rows.
    """

    def __init__(
        self,
        overrides: Sequence[str],
        seeds: Sequence[int],
        runs: Path,
        device: str,
        cache: Cache | None,
        allow_code: bool | tuple[str, ...],
    ) -> None:
        self.titles: list[str] = []
        self._overrides, self._seeds = overrides, seeds
        self._runs, self._device, self._cache = runs, device, cache
        self._allow_code = allow_code

    def all(self, paths: Sequence[Path], check: Callable[[Sequence[Run]], None] = lambda _: None) -> LoadedRuns:
        """The runs of all paths, run folders first. A run that fails is left out, and its error printed.

        ``check`` gets the runs of the run folders before anything is run, and raises what is wrong with the request.
        """
        from qplug.analysis.compare.load_runs import LoadedRuns, read_all, run_all
        from qplug.cli.report.progress import Progress

        recipes = [recipe for path in paths if _is_yaml(path) for recipe in self._recipes(path)]
        finished, from_recipes = read_all([path for path in paths if not _is_yaml(path)]), LoadedRuns()
        check(finished.runs)
        if recipes:
            with Progress(sys.stderr) as progress:
                from_recipes = run_all(
                    recipes,
                    self._runs,
                    device=self._device,
                    cache=self._cache,
                    observers=[progress],
                    announce=screen_of(sys.stderr).line,
                    before_first=_load_torch,
                )
        for error in (*finished.failures, *from_recipes.failures):
            screen_of(sys.stderr).line(f"left out: {error}", "yellow", wrap=True)
        return LoadedRuns(
            finished.runs + from_recipes.runs, from_recipes.recipes, finished.failures + from_recipes.failures
        )

    def one(self, path: Path) -> Run:
        """The single run of ``path``."""
        runs = self.all([path]).runs
        if len(runs) != 1:
            raise InputError(f"--diff compares two single runs, and {len(runs)} can be read here", where=str(path))
        return runs[0]

    def _recipes(self, path: Path) -> list[Recipe]:
        from qplug.recipe import load_recipe
        from qplug.recipe.sweep import is_sweep, load_sweep

        if is_sweep(path):
            title, recipes = load_sweep(path, self._overrides, seeds=self._seeds, allow_code=self._allow_code)
            self.titles.append(title)
            return recipes
        recipe = load_recipe(path, self._overrides, allow_code=self._allow_code)
        return [recipe.model_copy(update={"seed": seed}) for seed in self._seeds or [recipe.seed]]


def _load_torch() -> None:
    """Import what runs need, which takes seconds, and say so."""
    from qplug.cli.report.progress import loading

    with loading(sys.stderr):
        import qplug.pipeline.run  # noqa: F401


def _check_keys(found: Sequence[Run], checks: Sequence[Callable[[dict[str, Any]], bool]], sort: str | None) -> None:
    """Refuse unknown keys of --where and --sort before missing runs are computed."""
    from qplug.analysis.compare.choose import in_order
    from qplug.analysis.compare.rows import ComparisonRow
    from qplug.cli.report.comparison import example_values
    from qplug.hooks.registry import installed

    read = [name for run in found for name in ComparisonRow("", (run,)).plugin_metrics]
    example = example_values([*installed().metrics, *read])
    for holds in checks:
        holds(example)
    in_order([example], sort or "none", ())


def _is_yaml(path: Path) -> bool:
    from qplug.recipe.named import is_name

    return path.suffix in (".yaml", ".yml") or is_name(path)


def _seeds(text: str | None, overrides: Sequence[str]) -> list[int]:
    if text is None:
        return []
    from qplug.recipe.sweep import LARGEST_SEED

    if any(override.partition("=")[0].strip() == "seed" for override in overrides):
        raise InputError("--seeds and --set seed=… both set the seed", fix="leave one of them out")
    if not all(part.strip().isdecimal() and int(part) <= LARGEST_SEED for part in text.split(",")):
        what = f"expected whole numbers such as 0,1,2 up to {LARGEST_SEED}, received {text!r}"
        raise InputError(what, where="--seeds")
    return list(dict.fromkeys(int(part) for part in text.split(",")))


def _show_diff(first: Run, second: Run, formats: Sequence[str]) -> None:
    from dataclasses import asdict

    from qplug.analysis.compare.plans import plan_differences
    from qplug.cli.report.difference import difference_notes, difference_tables

    differences = plan_differences(first.plan, second.plan)
    rows = [asdict(difference) for difference in differences]
    value = {"status": "done", "differences": rows, "notes": difference_notes(first, second)}
    _print(formats, difference_tables(differences, first, second), rows, value)


def _print(formats: Sequence[str], tables: Sequence[Table], rows: Sequence[dict[str, Any]], value: Any) -> None:
    """Print ``tables``; with ``--csv`` print ``rows``, and with ``--json`` print ``value``."""
    from qplug.cli.report.formats import comma_separated, markdown, page

    if "--json" in formats:
        print_json(value)
    elif "--csv" in formats:
        results().write(comma_separated(rows))
    elif "--markdown" in formats:
        results().write(markdown(tables))
    elif "--html" in formats:
        results().write(page(tables, "qplug compare"))
    else:
        show(tables)
