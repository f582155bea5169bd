"""``qplug inspect``: the sites of a model and their costs; its activation ranges and Hessian traces."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from qplug.cli.app import Accounting, AllowCode, Device, Json, State, allowed_code, app, print_json, show
from qplug.cli.model_option import Checkpoint, ChosenModel, InputSize, Model, choose_model, explain_preprocessing
from qplug.cli.options import FOLDER, ClassMap, ImageOption, Picture, check_picture, checked, image_sources
from qplug.core.errors import InputError
from qplug.quantization.accounting import DEFAULT, Convention, convention

IMAGES, PROBES = 32, 100
DEFAULT_MIXERS = "by timm's names and by shape"


@app.command()
def inspect(
    model: Model,
    checkpoint: Checkpoint = None,
    input_size: InputSize = None,
    accounting: Accounting = DEFAULT,
    ranges: Annotated[
        bool, typer.Option("--ranges", help="Show only the ranges of activations along the depth.")
    ] = False,
    hessian: Annotated[
        bool, typer.Option("--hessian", help="Show only the Hessian traces of token and channel mixers.")
    ] = False,
    after: Annotated[
        Path | None,
        typer.Option(
            help="Also analyze the model after this recipe's rewrites, or of this run folder.", show_default=False
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help=FOLDER.format(purpose="analyze"), show_default="digits, for embedded models"),
    ] = None,
    class_map: ClassMap = None,
    calibration_images: Annotated[
        int | None, typer.Option(min=1, help="Number of images to analyze.", show_default=str(IMAGES))
    ] = None,
    hessian_probes: Annotated[
        int | None, typer.Option(min=1, help="Random vectors of the trace estimate, at most.", show_default=str(PROBES))
    ] = None,
    token_mixing: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Operations that mix tokens; repeatable.", show_default=DEFAULT_MIXERS),
    ] = None,
    channel_mixing: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Operations that mix channels; repeatable.", show_default=DEFAULT_MIXERS),
    ] = None,
    picture: Picture = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the choice of images and of every random step.", show_default="0")
    ] = None,
    device: Device = "cpu",
    allow_code: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Show which parts of a model can be quantized.

    Prints the sites with their kinds, shapes and MACs, the operations that stay in float, size and bit operations.
    --ranges and --hessian analyze the model on images instead.
    A recipe in the place of MODEL stands for its model, and for its data if no folder is given.
    """
    State.json = as_json
    counted_by = convention(accounting)
    analysis_options: dict[str, object] = {
        "--after": after,
        "--calibration": calibration,
        "--class-map": class_map,
        "--calibration-images": calibration_images,
        "--picture": picture,
        "--seed": seed,
        "--device": device if device != "cpu" else None,
    }
    hessian_options: dict[str, object] = {
        "--hessian-probes": hessian_probes,
        "--token-mixing": token_mixing,
        "--channel-mixing": channel_mixing,
    }
    _need(analysis_options | hessian_options, ranges or hessian, "--ranges or --hessian")
    _need(hessian_options, hessian, "--hessian")
    if (ranges or hessian) and accounting != DEFAULT:
        raise InputError("has no effect with --ranges and --hessian, which print no costs", where="--accounting")
    check_picture(picture)
    shapes_only = not (ranges or hessian)
    allowed = allowed_code(allow_code)
    chosen = choose_model(model, checkpoint, input_size, shapes_only=shapes_only, allow_code=allowed)
    if shapes_only:
        _show_sites(chosen, counted_by, as_json)
        return
    option = ImageOption("--calibration", calibration, calibration_images or IMAGES, "train", "to analyze")
    (images,) = image_sources(chosen, [option], class_map, "qplug inspect")

    from qplug.cli.report.progress import Progress, loading

    with loading(sys.stderr):
        from qplug.analysis.ranges.analyze import RangesRequest, analyze
    from qplug.cli.report.analysis import analysis_summary, analysis_tables
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
    try:
        with Progress(sys.stderr) as progress:
            analysis = analyze(
                chosen.source,
                images,
                request,
                after=after,
                device=device,
                observers=[progress],
                allow_code=allowed,
            )
    except InputError as error:
        raise explain_preprocessing(error, model, shapes_only=False) from error.__cause__
    if picture is not None:
        write_file(picture, draw(analysis, picture.suffix.lower().removeprefix(".")))
    if as_json:
        print_json(analysis_summary(analysis))
        return
    show(analysis_tables(analysis), [*chosen.notes, *analysis.warnings])


def _show_sites(chosen: ChosenModel, counted_by: Convention, as_json: bool) -> None:
    from qplug.cli.report.progress import loading

    with loading(sys.stderr):
        from qplug.analysis.inspect import inspect as inspect_model
    from qplug.cli.report.inspection import inspection_summary, inspection_tables

    try:
        inspection = inspect_model(chosen.source, weights=not chosen.stored)
    except InputError as error:
        raise explain_preprocessing(error, chosen.name, shapes_only=True) from error.__cause__
    notes = [*chosen.notes, *inspection.notes]
    if as_json:
        print_json({**inspection_summary(inspection, chosen.name), "notes": notes})
        return
    show(inspection_tables(inspection, chosen.name, counted_by), notes)


def _need(options: Mapping[str, object], enabled: bool, required: str) -> None:
    """Refuse an option that has no effect because ``required`` is missing."""
    option = next((option for option, value in options.items() if value not in (None, [])), None)
    if option is not None and not enabled:
        raise InputError(f"needs {required}, which was not given", where=option)
