"""``qplug sensitivity``: which tensors are hard to quantize, and do cheap measures predict the expensive one?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qplug.cli.app import Device, Json, State, app, model_source, print_json, screen_of
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

if TYPE_CHECKING:
    from qplug.core.component import Technique

PROBES = 32


@app.command()
def sensitivity(
    model: Model,
    checkpoint: Checkpoint = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help=FOLDER.format(purpose="calibrate on"), show_default="digits, for embedded models"),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(help=FOLDER.format(purpose="measure on"), show_default="digits, for embedded models"),
    ] = None,
    class_map: ClassMap = None,
    calibration_images: Annotated[int, typer.Option(min=1, help="Images to calibrate on.")] = 32,
    evaluation_images: Annotated[
        int | None, typer.Option(min=1, help="Images to measure on.", show_default="all")
    ] = None,
    bits: Annotated[str, typer.Option(help="Widths at which each site's SQNR is measured.")] = "8,6,4",
    drop_bits: Annotated[
        int | None, typer.Option(help="Width of the one quantized site.", show_default="the smallest of --bits")
    ] = None,
    hessian: Annotated[bool, typer.Option("--hessian", help="Estimate the Hessian trace of every weight.")] = False,
    hessian_probes: Annotated[
        int | None, typer.Option(min=1, help="Random vectors, at most.", show_default=str(PROBES))
    ] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            help="A technique that estimates ranges; several are asked in turn.", show_default="baseline.hessian"
        ),
    ] = None,
    match: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only sites whose name, module or kind matches; may be repeated."),
    ] = None,
    softmax: Annotated[bool, typer.Option("--softmax", help="Measure the inputs of Softmax too.")] = False,
    layernorm: Annotated[bool, typer.Option("--layernorm", help="Measure the inputs of LayerNorm too.")] = False,
    top: Annotated[
        int | None, typer.Option(min=1, help="Show only the most sensitive sites.", show_default="all")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", show_default=False)] = None,
    picture: Picture = None,
    seed: Annotated[int, typer.Option(min=0, help="Seeds the choice of images and every random step.")] = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Show which tensors are hard to quantize.

    SQNR of every site, what it alone does to the logits, Hessian traces of weights, and how these rank alike.
    """
    State.json = as_json
    from qplug.core.storage.atomic import check_file, write_file

    if out is not None:
        check_file(out, "--out")
    check_picture(picture)
    if hessian_probes is not None and not hessian:
        raise InputError("needs --hessian, which was not given", where="--hessian-probes")
    source = model_source(model, checkpoint)
    wanted = (
        Wanted("--calibration", calibration, calibration_images, "train", "to calibrate"),
        Wanted("--evaluation", evaluation, evaluation_images, "test", "to measure on"),
    )
    shown, judged = image_sources(source.name(), model, wanted, class_map, "qplug sensitivity")
    techniques = [_technique(name) for name in ranges or ["baseline.hessian"]]

    from qplug.analysis.sensitivity.measure import SensitivityRequest, measure
    from qplug.cli.report.progress import Progress
    from qplug.cli.report.sensitivity import sensitivity_tables, summary
    from qplug.recipe.schema import Scope

    request = checked(
        SensitivityRequest,
        bits=_widths(bits),
        drop_bits=drop_bits,
        scope=Scope(softmax=softmax, layernorm=layernorm),
        match=tuple(match or ()),
        hessian_probes=(hessian_probes or PROBES) if hessian else 0,
        seed=seed,
    )
    if picture is not None:
        from qplug.cli.report.sensitivity_picture import draw
    try:
        with Progress(sys.stderr) as progress:
            found = measure(source, shown, judged, techniques, request, device=device, observers=[progress])
    except InputError as error:
        if error.where == "techniques":  # said for recipes
            error.where, error.fix = "--ranges", "add --ranges baseline.hessian, which takes what is left"
        raise
    if out is not None:
        from qplug.core.storage.run_folder import to_json

        write_file(out, to_json(summary(found)).encode())
    if picture is not None:
        write_file(picture, draw(found, picture.suffix.lower().removeprefix(".")))
    if as_json:
        print_json(summary(found))
        return
    screen = screen_of()
    for table in sensitivity_tables(found, top):
        screen.table(table)
    for warning in found.warnings:
        screen.line(f"warning: {warning}", "yellow")


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise InputError(f"expected widths such as 8,6,4, received {text!r}", where="--bits") from None
    return widths


def _technique(name: str) -> Technique:
    from qplug.cli.report.catalogue import technique
    from qplug.hooks.registry import installed

    if "qplug_make_quantizer" not in technique(installed(), name)["hooks"]:
        raise InputError(
            f"{name} estimates no ranges",
            where="--ranges",
            fix="'qplug techniques NAME' shows the hooks of a technique",
        )
    found = installed().techniques[name]
    return found(checked(found.Config, name, use=name))
