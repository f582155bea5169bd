"""``qplug.compare``: results in memory and run folders in one table."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplug.analysis.compare import group
from qplug.analysis.compare.choose import in_order
from qplug.core.errors import InputError, exits_named
from qplug.pipeline.read_run import Run, read_run
from qplug.pipeline.results import RunResult
from qplug.quantization.accounting import DEFAULT, convention

if TYPE_CHECKING:
    from qplug.cli.report.screen import Table


@dataclass
class Comparison:
    """Runs in one table; ``print(comparison)`` shows it.

    Attributes:
        rows: one flat mapping for each row, the best first, with the keys of ``qplug compare --json``.
        tables: as ``qplug compare`` prints them.
    """

    rows: list[dict[str, Any]]
    tables: list[Table]

    def __str__(self) -> str:
        from qplug.api.text import plain

        return plain(self.tables)


@exits_named
def compare(results: Iterable[RunResult | str | Path], names: Sequence[str] | None = None) -> Comparison:
    """Compare results of ``qplug.quantize`` and run folders, the best first.

    Args:
        results: results, and paths of run folders.
        names: one for each, in the place of the recipes' names.

    Raises:
        InputError: there is nothing to compare, a folder cannot be read, a result has no run folder and no model in
            memory, or there is another number of names.
    """
    from qplug.cli.report import comparison

    given = list(results) if not isinstance(results, (str, Path, RunResult)) else [results]
    if not given:
        raise InputError("expected results or run folders to compare, received none", where="compare")
    if names is not None and len(names) != len(given):
        raise InputError(f"expected {len(given)} names, received {len(names)}", where="names")
    counted_by = convention(DEFAULT)
    with tempfile.TemporaryDirectory() as scratch:
        runs = [_run(one, Path(scratch) / str(index)) for index, one in enumerate(given)]
        for run, name in zip(runs, names or (), strict=False):
            run.recipe["name"] = name
        groups = group(runs)
        least = comparison.BEST_IS_LEAST
        rows = in_order(comparison.values(groups, counted_by), "top1", least)
        tables = comparison.comparison_tables(groups, rows, counted_by)
    return Comparison(rows, tables)


def _run(result: RunResult | str | Path, scratch: Path) -> Run:
    """A run that was read as a whole; ``scratch`` takes the folder of a result that has none."""
    if isinstance(result, RunResult):
        if result.folder is None and result.write is None:
            what = "the result has no run folder"
            raise InputError(what, where="compare", fix="give qplug.run a folder: out=…")
        if result.folder is None:
            assert result.write is not None
            result.write(scratch)
            return _whole(replace(read_run(scratch), folder=Path("in memory")), scratch)
        result = result.folder
    return _whole(read_run(result), Path(result))


def _whole(run: Run, folder: Path) -> Run:
    """``run`` with the files that a table reads, before the folder is removed."""
    held = read_run(folder)
    held.check()
    vars(run).update(recipe=held.recipe, plan=held.plan, evaluation=held.evaluation)
    return run
