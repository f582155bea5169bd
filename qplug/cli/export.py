"""``qplug export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from qplug.cli.app import Json, State, app, print_json, screen_of
from qplug.core.errors import InputError


@app.command()
def export(
    run: Annotated[Path, typer.Argument(show_default=False, help="A run folder.")],
    format: Annotated[str, typer.Option(help="onnx-qdq, onnx-integer, onnx-qonnx or torch.")] = "onnx-qdq",
    out: Annotated[Path | None, typer.Option(help="The file to write.", show_default="beside RUN")] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not compare with the simulation; the file says so.")
    ] = False,
    images: Annotated[int, typer.Option(min=1, help="Evaluation images that are compared.")] = 16,
    saturating: Annotated[
        bool, typer.Option("--saturating", help="Hold signed bytes alone: exact with VNNI, wrong on x86 without it.")
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Print how far every operation differs.")] = False,
    as_json: Json = False,
) -> None:
    """Write a run's quantized model as ONNX or as a torch program, if a runtime computes what was simulated."""
    State.json = as_json
    from qplug.cli.report.export import summary, tables
    from qplug.export.export_run import FormatName, export_run

    known = {name: name for name in get_args(FormatName)}
    if format not in known:
        raise InputError(f"there is no format '{format}'", where="--format", fix=f"choose one of {', '.join(known)}")
    result = export_run(run, known[format], out, verify=not no_verify, images=images, saturating=saturating)
    if as_json:
        print_json(summary(result, layers))
        return
    screen = screen_of()
    for table in tables(result, layers):
        screen.table(table)
    for warning in result.warnings:
        screen.line(f"warning: {warning}", "yellow")
