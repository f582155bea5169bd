"""``qplug bench``: time a run's float and quantized models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qplug.cli.app import AllowCode, Json, State, allowed_code, app, print_json, screen_of
from qplug.core.errors import InputError
from qplug.export.formats.table import DEFAULT_TIMED, format_of, timed


@app.command()
def bench(
    run: Annotated[Path, typer.Argument(show_default=False, help="A run folder.")],
    batch: Annotated[str, typer.Option(help="Images per call; several sizes are measured in turn.")] = "1,32",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime, for both models.")] = 1,
    rounds: Annotated[int, typer.Option(min=3, help="Number of timings of each model.")] = 15,
    form: Annotated[
        str, typer.Option("--format", help=f"Format of the quantized file, one of {', '.join(timed())}.")
    ] = DEFAULT_TIMED,
    saturating: Annotated[
        bool, typer.Option("--saturating", help="Hold signed bytes alone: exact with VNNI, wrong on x86 without it.")
    ] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Print the time of each of its operators.")] = False,
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Time float and quantized models side by side in ONNX Runtime."""
    State.json = as_json
    format_of(form, timed(), "--format")
    batches = _batches(batch)
    from qplug.cli.report.bench import bench_summary, bench_tables
    from qplug.export.bench import bench as measure

    found = measure(
        run,
        batches=batches,
        threads=threads,
        rounds=rounds,
        form=form,
        saturating=saturating,
        profiled=profile,
        allow_code=allowed_code(allow_code),
    )
    if as_json:
        print_json(bench_summary(found))
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
        raise InputError(
            f"expected sizes such as 1,32, received {text!r}",
            where="--batch",
            fix="separate numbers by commas",
        )
    return sizes
