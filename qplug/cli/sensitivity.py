"""``qplug sensitivity``: the sensitivity of each site, and how well cheap measures predict it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qplug.cli.app import AllowCode, Device, Json, State, allowed_code, app, print_json, show
from qplug.cli.model_option import Checkpoint, InputSize, Model, choose_model, explain_preprocessing
from qplug.cli.options import FOLDER, ClassMap, ImageOption, Picture, check_picture, checked, image_sources
from qplug.core.errors import InputError

if TYPE_CHECKING:
    from qplug.core.component import Technique

PROBES = 32


@app.command()
def sensitivity(
    model: Model,
    checkpoint: Checkpoint = None,
    input_size: InputSize = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help=FOLDER.format(purpose="calibrate on"), show_default="digits, for embedded models"),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(help=FOLDER.format(purpose="measure on"), show_default="digits, for embedded models"),
    ] = None,
    class_map: ClassMap = None,
    calibration_images: Annotated[int, typer.Option(min=1, help="Number of images to calibrate on.")] = 32,
    evaluation_images: Annotated[
        int | None, typer.Option(min=1, help="Number of images to measure on.", show_default="all")
    ] = None,
    bits: Annotated[str, typer.Option(help="Bits at which the SQNR of each site is measured.")] = "8,6,4",
    drop_bits: Annotated[
        int | None, typer.Option(help="Bits of the one quantized site.", show_default="the smallest of --bits")
    ] = None,
    hessian: Annotated[bool, typer.Option("--hessian", help="Estimate the Hessian trace of every weight.")] = False,
    hessian_probes: Annotated[
        int | None, typer.Option(min=1, help="Random vectors of the trace estimate, at most.", show_default=str(PROBES))
    ] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            help="Technique that makes the quantizers; repeatable, the first that takes a site wins.",
            show_default="baseline.hessian",
        ),
    ] = None,
    match: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Measure only sites whose name, module or kind matches; repeatable."),
    ] = None,
    softmax: Annotated[bool, typer.Option("--softmax", help="Measure the inputs of Softmax too.")] = False,
    layernorm: Annotated[bool, typer.Option("--layernorm", help="Measure the inputs of LayerNorm too.")] = False,
    top: Annotated[
        int | None, typer.Option(min=1, help="Number of sites to show, the most sensitive first.", show_default="all")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", show_default=False)] = None,
    picture: Picture = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of images and of every random step.")] = 0,
    device: Device = "cpu",
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Show which tensors are hard to quantize.

    Quantizes one site at a time and measures the change of the outputs. Also prints the SQNR of each site, Hessian
    traces of weights, and rank correlations between these measures.
    A recipe in the place of MODEL stands for its model, and for its data if no folder is given.
    """
    State.json = as_json
    from qplug.core.storage.atomic import check_file, write_file

    if out is not None:
        check_file(out, "--out")
    check_picture(picture)
    if hessian_probes is not None and not hessian:
        raise InputError("needs --hessian, which was not given", where="--hessian-probes")
    chosen = choose_model(model, checkpoint, input_size, shapes_only=False, allow_code=allowed_code(allow_code))
    options = (
        ImageOption("--calibration", calibration, calibration_images, "train", "to calibrate"),
        ImageOption("--evaluation", evaluation, evaluation_images, "test", "to measure on"),
    )
    calibration_source, evaluation_source = image_sources(chosen, options, class_map, "qplug sensitivity")
    techniques = [_technique(name) for name in ranges or ["baseline.hessian"]]

    from qplug.cli.report.progress import Progress, loading

    with loading(sys.stderr):
        from qplug.analysis.sensitivity.measure import SensitivityRequest, measure
    from qplug.cli.report.sensitivity import sensitivity_summary, sensitivity_tables
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
            result = measure(
                chosen.source,
                calibration_source,
                evaluation_source,
                techniques,
                request,
                device=device,
                observers=[progress],
            )
    except InputError as error:
        if error.where == "techniques":  # the place in a recipe; here it is an option
            error.where, error.fix = "--ranges", "add --ranges baseline.hessian, which takes every other site"
        raise explain_preprocessing(error, model, shapes_only=False) from error.__cause__
    if out is not None:
        from qplug.core.storage.run_folder import to_json

        write_file(out, to_json(sensitivity_summary(result)).encode())
    if picture is not None:
        write_file(picture, draw(result, picture.suffix.lower().removeprefix(".")))
    if as_json:
        print_json(sensitivity_summary(result))
        return
    show(sensitivity_tables(result, top), [*chosen.notes, *result.warnings])


def _widths(text: str) -> tuple[int, ...]:
    """``8,6,4`` → bits, without repetitions."""
    try:
        widths = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise InputError(f"expected bits such as 8,6,4, received {text!r}", where="--bits") from None
    return widths


def _technique(name: str) -> Technique:
    from qplug.cli.report.catalogue import technique
    from qplug.hooks.registry import installed

    if "qplug_make_quantizer" not in technique(installed(), name)["hooks"]:
        raise InputError(
            f"{name} makes no quantizers",
            where="--ranges",
            fix="'qplug techniques NAME' lists the hooks of a technique",
        )
    technique_class = installed().techniques[name]
    return technique_class(checked(technique_class.Config, name, use=name))
