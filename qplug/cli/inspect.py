"""``qplug inspect``: what of a model can be quantized, and what makes that hard."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qplug.cli.app import Accounting, Device, Json, State, app, model_source, print_json, screen_of
from qplug.cli.options import (
    FOLDER,
    Checkpoint,
    ClassMap,
    Model,
    Picture,
    Wanted,
    check_picture,
    checked,
    image_sources,
)
from qplug.core.errors import InputError
from qplug.quantization.accounting import DEFAULT, Convention, convention

if TYPE_CHECKING:
    from qplug.core.component import ModelSource

IMAGES, PROBES = 32, 100
KNOWN = "by timm's names, and by shape"


@app.command()
def inspect(
    model: Model,
    checkpoint: Checkpoint = None,
    accounting: Accounting = DEFAULT,
    ranges: Annotated[
        bool, typer.Option("--ranges", help="Show how wide activations are along the depth, and nothing else.")
    ] = False,
    hessian: Annotated[
        bool, typer.Option("--hessian", help="Show Hessian traces of token and channel mixers, and nothing else.")
    ] = False,
    after: Annotated[
        Path | None,
        typer.Option(help="Recipe that rewrites the model, or run folder of it, to look at too.", show_default=False),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help=FOLDER.format(purpose="look at"), show_default="digits, for embedded models"),
    ] = None,
    class_map: ClassMap = None,
    calibration_images: Annotated[
        int | None, typer.Option(min=1, help="Images to look at.", show_default=str(IMAGES))
    ] = None,
    hessian_probes: Annotated[
        int | None, typer.Option(min=1, help="Random vectors, at most.", show_default=str(PROBES))
    ] = None,
    token_mixing: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Operations that mix tokens.", show_default=KNOWN),
    ] = None,
    channel_mixing: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Operations that mix channels.", show_default=KNOWN),
    ] = None,
    picture: Picture = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seeds the choice of images and every random step.", show_default="0")
    ] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Show what of a model can be quantized, and what it would cost.

    Sites, kinds, shapes and MACs, what stays in float, size and bit operations; or with --ranges and --hessian, what
    makes it hard to quantize.
    """
    State.json = as_json
    counted_by = convention(accounting)
    analysed: dict[str, object] = {
        "--after": after,
        "--calibration": calibration,
        "--class-map": class_map,
        "--calibration-images": calibration_images,
        "--picture": picture,
        "--seed": seed,
        "--device": device if device != "cpu" else None,
    }
    traced: dict[str, object] = {
        "--hessian-probes": hessian_probes,
        "--token-mixing": token_mixing,
        "--channel-mixing": channel_mixing,
    }
    _need(analysed | traced, ranges or hessian, "--ranges or --hessian")
    _need(traced, hessian, "--hessian")
    if (ranges or hessian) and accounting != DEFAULT:
        raise InputError("has no effect with --ranges and --hessian, which count no costs", where="--accounting")
    check_picture(picture)
    source = model_source(model, checkpoint)
    if not (ranges or hessian):
        _sites(source, model, counted_by, as_json)
        return
    wanted = Wanted("--calibration", calibration, calibration_images or IMAGES, "train", "to look at")
    (images,) = image_sources(source.name(), model, [wanted], class_map, "qplug inspect")

    from qplug.analysis.ranges.analyze import RangesRequest, analyze
    from qplug.cli.report.analysis import analysis_tables, summary
    from qplug.cli.report.progress import Progress
    from qplug.core.storage.atomic import write_file

    patterns = {"token_mixing": token_mixing, "channel_mixing": channel_mixing}
    more: dict[str, Any] = {name: tuple(given) for name, given in patterns.items() if given}
    request = checked(
        RangesRequest,
        ranges=ranges,
        hessian_probes=(hessian_probes or PROBES) if hessian else 0,
        seed=seed or 0,
        **more,
    )
    if picture is not None:
        from qplug.cli.report.analysis_picture import draw
    with Progress(sys.stderr) as progress:
        found = analyze(source, images, request, after=after, device=device, observers=[progress])
    if picture is not None:
        write_file(picture, draw(found, picture.suffix.lower().removeprefix(".")))
    if as_json:
        print_json(summary(found))
        return
    screen = screen_of()
    for table in analysis_tables(found):
        screen.table(table)
    for warning in found.warnings:
        screen.line(f"warning: {warning}", "yellow")


def _sites(source: ModelSource, model: str, counted_by: Convention, as_json: bool) -> None:
    from qplug.analysis.inspect import inspect as inspect_model
    from qplug.cli.report.inspection import inspection, inspection_tables

    found = inspect_model(source)
    if as_json:
        print_json(inspection(found, model))
        return
    screen = screen_of()
    for table in inspection_tables(found, model, counted_by):
        screen.table(table)


def _need(given: Mapping[str, object], there: bool, what: str) -> None:
    """Refuse an option that would be without effect."""
    option = next((option for option, value in given.items() if value not in (None, [])), None)
    if option is not None and not there:
        raise InputError(f"needs {what}, which was not given", where=option)
