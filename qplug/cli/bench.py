"""``qplug bench``: how much faster a run's quantized model is than its float one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qplug.cli.app import Json, State, app, print_json, screen_of
from qplug.core.errors import InputError
from qplug.export.bench import FORMATS, bench as measure

KNOWN = " or ".join(FORMATS)


@app.command()
def bench(
    run: Annotated[Path, typer.Argument(show_default=False, help="A run folder.")],
    batch: Annotated[str, typer.Option(help="Images a call; several are measured in turn.")] = "1,32",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime, for both models.")] = 1,
    rounds: Annotated[int, typer.Option(min=3, help="How often each model is timed.")] = 15,
    form: Annotated[
        str, typer.Option("--format", help=f"Of the quantized file: {' or '.join(FORMATS)}.")
    ] = "onnx-integer",
    saturating: Annotated[
        bool, typer.Option("--saturating", help="Hold signed bytes alone: exact with VNNI, wrong on x86 without it.")
    ] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the quantized model's time goes.")] = False,
    as_json: Json = False,
) -> None:
    """Time float and quantized models side by side in ONNX Runtime."""
    State.json = as_json
    if form not in FORMATS:
        raise InputError(f"expected {KNOWN}, received {form!r}", where="--format")
    batches = _batches(batch)
    from qplug.cli.report.bench import bench_tables, summary

    found = measure(
        run, batches=batches, threads=threads, rounds=rounds, form=form, saturating=saturating, profiled=profile
    )
    if as_json:
        print_json(summary(found))
        return
    screen = screen_of()
    for table in bench_tables(found):
        screen.table(table)


def _batches(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise InputError(f"expected sizes such as 1,32, received {text!r}", where="--batch")
    return sizes
