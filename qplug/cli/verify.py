"""``qplug verify``: whether run folders are what their runs wrote."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qplug.cli.app import AllowCode, Json, State, allowed_code, app, describe, print_json, screen_of, show
from qplug.core.errors import InputError


@app.command()
def verify(
    runs: Annotated[list[Path], typer.Argument(show_default=False, help="Run folders, or folders of run folders.")],
    as_json: Json = False,
    device: Annotated[
        str | None, typer.Option(help="Device to compute on, as in torch.", show_default="the run's")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Check that run folders are what their runs wrote, and that their models give the same outputs.

    Exit code 0: nothing differs. 1: something differs. 2: a folder cannot be read.
    """
    State.json = as_json
    allowed = allowed_code(allow_code)
    from qplug.analysis.compare.load_runs import run_folders
    from qplug.analysis.verify import Verification, verify as verify_run
    from qplug.cli.report.progress import Progress, loading
    from qplug.cli.report.verification import verification_summary, verification_table

    found: list[Verification] = []
    failures: list[InputError] = []
    with loading(sys.stderr):
        import qplug.pipeline.load_run  # noqa: F401
    with Progress(sys.stderr) as progress:
        for folder in [folder for path in runs for folder in run_folders(path)]:

            def advance(done: int, total: int, name: str = folder.name) -> None:
                progress.advance(f"verify {name}", done, total)

            try:
                found.append(verify_run(folder, device, advance=advance, allow_code=allowed))
            except InputError as error:
                failures.append(error)
    holds = all(verification.holds for verification in found)
    if as_json:
        status = "done" if holds and not failures else "error"
        left_out = [describe(error) for error in failures]
        print_json({"status": status, "runs": list(map(verification_summary, found)), "left_out": left_out})
    else:
        show(map(verification_table, found))
    for failure in failures:
        screen_of(sys.stderr).error(failure)
    raise typer.Exit(2 if failures else 0 if holds else 1)
