"""``qplug sensitivity``: which tensors are hard to quantise, and do cheap measures predict the expensive one?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from qplug.cli.app import Device, Json, State, app, model_source, print_json, screen_of
from qplug.errors import InputError

if TYPE_CHECKING:
    from qplug.techniques import DataSource, Technique

T = TypeVar("T")
PROBES = 32


@app.command()
def sensitivity(
    model: Annotated[str, typer.Argument(help="An embedded model, timm's name, or module:function.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights to load.", show_default=False)] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Folder of class folders to calibrate on.", show_default="digits, for embedded models"),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="Folder of class folders to measure on.", show_default="digits, for embedded models"),
    ] = None,
    class_map: Annotated[
        Path | None, typer.Option(help="Class folders, one a line; labels are not used.", show_default=False)
    ] = None,
    calibration_images: Annotated[int, typer.Option(min=1, help="Images to calibrate on.")] = 32,
    evaluation_images: Annotated[
        int | None, typer.Option(min=1, help="Images to measure on.", show_default="all")
    ] = None,
    bits: Annotated[str, typer.Option(help="Widths at which each site's SQNR is measured.")] = "8,6,4",
    drop_bits: Annotated[
        int | None, typer.Option(help="Width of the one quantised site.", show_default="the smallest of --bits")
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
    picture: Annotated[Path | None, typer.Option(help="PNG or SVG file to draw.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seeds the choice of images and every random step.")] = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Show which tensors are hard to quantise.

    SQNR of every site, what it alone does to the logits, Hessian traces of weights, and how these rank alike.
    """
    State.json = as_json
    from qplug.files import check_file, write_file

    for path, option in ((out, "--out"), (picture, "--picture")):
        if path is not None:
            check_file(path, option)
    if picture is not None and picture.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"expected a name in .png or .svg, received {picture.name!r}", where="--picture")
    if hessian_probes is not None and not hessian:
        raise InputError("needs --hessian, which was not given", where="--hessian-probes")
    source = model_source(model, checkpoint)
    shown, judged = _data(
        source.name(), model, calibration, evaluation, class_map, calibration_images, evaluation_images
    )
    techniques = [_technique(name) for name in ranges or ["baseline.hessian"]]

    from qplug.recipe.schema import Scope
    from qplug.report.progress import Progress
    from qplug.report.sensitivity import sensitivity_tables, summary
    from qplug.sensitivity.measure import Request, measure

    request = _checked(
        Request,
        bits=_widths(bits),
        drop_bits=drop_bits,
        scope=Scope(softmax=softmax, layernorm=layernorm),
        match=tuple(match or ()),
        hessian_probes=(hessian_probes or PROBES) if hessian else 0,
        seed=seed,
    )
    if picture is not None:
        from qplug.report.sensitivity_picture import draw
    try:
        with Progress(sys.stderr) as progress:
            found = measure(source, shown, judged, techniques, request, device=device, observers=[progress])
    except InputError as error:
        if error.where == "techniques":  # said for recipes
            error.where, error.fix = "--ranges", "add --ranges baseline.hessian, which takes what is left"
        raise
    if out is not None:
        from qplug.record import to_json

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
    from qplug.registry import installed
    from qplug.report.catalogue import technique

    if "qplug_estimate_range" not in technique(installed(), name)["hooks"]:
        raise InputError(
            f"{name} estimates no ranges",
            where="--ranges",
            fix="'qplug techniques NAME' shows the hooks of a technique",
        )
    found = installed().techniques[name]
    return found(_checked(found.Config, name, use=name))


def _data(
    kind: str,
    model: str,
    calibration: Path | None,
    evaluation: Path | None,
    class_map: Path | None,
    calibration_images: int,
    evaluation_images: int | None,
) -> list[DataSource]:
    """Sources of the images to calibrate and to measure on: the folders, or for the embedded models the digits."""
    given = {"--calibration": calibration, "--evaluation": evaluation}
    missing = [option for option, path in given.items() if path is None]
    counts = (calibration_images, evaluation_images)
    if kind == "zoo" and len(missing) == 2 and class_map is None:
        splits = zip(("train", "test"), counts, strict=True)
        return [_source("digits", split=split, images=images) for split, images in splits]
    if missing:
        from qplug.models.zoo import ZOO

        raise InputError(
            f"{model} needs images to calibrate and to measure on, and {' and '.join(missing)} "
            f"{'were' if len(missing) > 1 else 'was'} not given",
            where="qplug sensitivity",
            fix="add --calibration FOLDER --evaluation FOLDER, each with images in a folder for each class; only the "
            f"embedded models ({', '.join(ZOO)}) bring images of their own",
        )
    more = {"class_map": str(class_map)} if class_map else {}
    folders = zip(given.values(), counts, strict=True)
    return [_source("folder", path=str(path), images=images, **more) for path, images in folders]


def _source(kind: str, **values: Any) -> DataSource:
    from qplug.registry import installed

    sources = installed().datasets
    if kind not in sources:
        raise InputError(f"the data source '{kind}' is not installed", fix="'qplug plugins' says why")
    return sources[kind](_checked(sources[kind].Config, source=kind, **values))


def _checked(config: Callable[..., T], technique: str = "", **values: Any) -> T:
    """A validated configuration; raises ``InputError`` with the first thing that is wrong, at its option."""
    from pydantic import ValidationError

    try:
        return config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        where = f"{technique}: {name}" if technique else f"--{name.replace('_', '-')}"
        raise InputError(f"{first['msg']}, received {first['input']!r}", where=where) from None
