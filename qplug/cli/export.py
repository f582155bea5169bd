"""``qplug export``: write a run's quantized model to a file for another runtime."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qplug.cli.app import AllowCode, Json, State, allowed_code, app, print_json, screen_of
from qplug.export.formats.table import DEFAULT, described, format_of


@app.command()
def export(
    run: Annotated[Path, typer.Argument(show_default=False, help="A run folder.")],
    format: Annotated[str, typer.Option(help=f"Format of the file. {described()}.")] = DEFAULT,
    out: Annotated[Path | None, typer.Option(help="The file to write.", show_default="beside RUN")] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Write the file without a comparison; its metadata state this.")
    ] = False,
    images: Annotated[int, typer.Option(min=1, help="Evaluation images to compare.")] = 16,
    saturating: Annotated[
        bool, typer.Option("--saturating", help="Hold signed bytes alone: exact with VNNI, wrong on x86 without it.")
    ] = False,
    changed_code: Annotated[
        bool, typer.Option("--changed-code", help="Export although the code of qplug or of a plugin changed.")
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Print the difference of every operation.")] = False,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Write a run's quantized model to a file, provided that its runtime computes the simulation's values."""
    State.json = as_json
    format_of(format, where="--format")
    from qplug.cli.report.export import export_summary, export_tables
    from qplug.cli.report.progress import loading

    with loading(sys.stderr):
        from qplug.export.export_run import export_run

    verify, allowed = not no_verify, allowed_code(allow_code)
    State.written = "nothing was written"
    result = export_run(
        run,
        format,
        out,
        verify=verify,
        images=images,
        saturating=saturating,
        changed_code=changed_code,
        allow_code=allowed,
    )
    if as_json:
        print_json(export_summary(result, layers))
        return
    screen = screen_of()
    for table in export_tables(result, layers):
        screen.table(table)
    for warning in result.warnings:
        screen.line(f"warning: {warning}", "yellow")
