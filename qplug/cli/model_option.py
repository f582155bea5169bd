"""MODEL of ``inspect`` and ``sensitivity``: a name, a function, a recipe, or a run folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from qplug.core.errors import InputError

if TYPE_CHECKING:
    from qplug.core.component import ModelSource
    from qplug.hooks.registry import Registry
    from qplug.recipe import AllowCode, Recipe

Model = Annotated[
    str,
    typer.Argument(
        help="Model: a name of the zoo, of timm or of timm on the hub, module:function, a recipe, or a run folder."
    ),
]
Checkpoint = Annotated[Path | None, typer.Option(help="File of weights to load.", show_default=False)]
InputSize = Annotated[
    str | None,
    typer.Option(
        "--input-size",
        metavar="C,H,W",
        help="Channels, height and width of an image, such as 3,224,224.",
        show_default="the model's own",
    ),
]
TIMM = "timm:"
"""May precede a name of timm, so that it is no other's."""
RECIPE_SUFFIXES = (".yaml", ".yml")
SHAPE_ALONE = {"interpolation": "bilinear", "crop_pct": 1.0}
"""Preprocessing of a model whose sites alone are of interest: no image is prepared by it."""


@dataclass(frozen=True)
class ChosenModel:
    """What MODEL names.

    Attributes:
        source: loads the model.
        name: of the model, as it was given.
        recipe: whose model it is; ``None`` if no recipe was given.
        stored: whether it is the model of a run folder, whose original weights need not exist.
        notes: how the name was understood, one sentence each.
    """

    source: ModelSource
    name: str
    recipe: Recipe | None = None
    stored: bool = False
    notes: list[str] = field(default_factory=list)


def choose_model(
    model: str,
    checkpoint: Path | None,
    input_size: str | None,
    *,
    shapes_only: bool,
    allow_code: AllowCode = False,
) -> ChosenModel:
    """The source of MODEL: a recipe or run folder if there is one, an import path, the zoo, else timm.

    Args:
        model: of the command line.
        checkpoint: weights in the place of the model's own.
        input_size: ``C,H,W``, for a model without a preprocessing of its own.
        shapes_only: whether only shapes matter, so that mean and standard deviation need not be known.
        allow_code: whether a recipe may name code from outside the installed packages; ``module:function`` always may.

    Raises:
        InputError: there is no such model, or an option has no effect on it.
    """
    from qplug.hooks.registry import installed

    registry, path = installed(), Path(model)
    if _is_folder(path, model) or path.suffix in RECIPE_SUFFIXES:
        return _of_recipe(path, checkpoint, input_size, registry, allow_code)
    kind, name = _kind(model, registry)
    values: dict[str, Any] = {"source": kind, "target" if kind == "import" else "name": name}
    if checkpoint is not None:
        values["checkpoint_path"] = str(checkpoint)
    if input_size is not None:
        values["preprocessing"] = _preprocessing(input_size, kind, shapes_only)
    notes = [f"{model} is timm's {name}"] if name != model.removeprefix(TIMM) else []
    return ChosenModel(_source(registry, kind, values, model), name, notes=notes)


def explain_preprocessing(error: InputError, model: str, shapes_only: bool) -> InputError:
    """``error`` with what to add to the command line where a model's preprocessing is not complete."""
    if error.where == "model.preprocessing":
        missing = error.fix.removeprefix("set ")
        recipe = f"give a recipe in the place of MODEL, with {missing} in its model.preprocessing"
        error.where, error.fix = model, "add --input-size C,H,W, such as 3,224,224" if shapes_only else recipe
    return error


def _is_folder(path: Path, model: str) -> bool:
    """Whether MODEL is a run folder, and not the name of a model that some folder has too."""
    return path.is_dir() and ((path / "lock.json").exists() or "/" in model or model in (".", ".."))


def _kind(model: str, registry: Registry) -> tuple[str, str]:
    """The source that has the model, and its name there."""
    from qplug.models.sources import HUB_PREFIXES, timm_name

    zoo = get_args(registry.models["zoo"].Config.model_fields["name"].annotation) if "zoo" in registry.models else ()
    if model in zoo:
        return "zoo", model
    if model.startswith(TIMM) and model != f"{TIMM}create_model":  # that is a function to import
        return "timm", timm_name(model.removeprefix(TIMM))
    if model.startswith(HUB_PREFIXES) or ("/" in model and ":" not in model):
        return "timm", timm_name(model)
    return ("import" if ":" in model else "timm"), model


def _of_recipe(
    path: Path, checkpoint: Path | None, input_size: str | None, registry: Registry, allow_code: AllowCode
) -> ChosenModel:
    from qplug.hooks.registry import component
    from qplug.recipe import load_recipe

    if input_size is not None:
        fix = "set model.preprocessing.input_size in the recipe"
        raise InputError("has no effect on the model of a recipe", where="--input-size", fix=fix)
    stored = path.is_dir()
    if stored:
        from qplug.pipeline.read_run import read_run

        recipe = load_recipe(read_run(path).checked("recipe.yaml"), registry=registry, allow_code=allow_code)
    else:
        recipe = load_recipe(path, registry=registry, allow_code=allow_code)
    config = recipe.model
    source = component(registry.models, config)
    if checkpoint is not None:
        if "checkpoint_path" not in type(config).model_fields:
            raise InputError(f"a model of the source '{source.name()}' takes no weights", where="--checkpoint")
        values = config.model_dump(mode="json") | {"checkpoint_path": str(checkpoint)}
        if "pretrained" in values:
            values["pretrained"] = False
        return ChosenModel(_source(registry, source.name(), values, str(path)), str(path), recipe)
    return ChosenModel(source.kept_in(path) if stored else source, str(path), recipe, stored)


def _preprocessing(text: str, kind: str, shapes_only: bool) -> dict[str, Any]:
    if kind == "zoo":
        raise InputError("has no effect on a model of the zoo, which takes one size", where="--input-size")
    try:
        channels, height, width = (int(part) for part in text.split(","))
    except ValueError:
        what = f"expected channels, height and width such as 3,224,224, received {text!r}"
        raise InputError(what, where="--input-size") from None
    size = {"input_size": (channels, height, width)}
    if not shapes_only or kind != "import":
        return size
    return size | {"mean": (0.0,) * channels, "std": (1.0,) * channels} | SHAPE_ALONE


def _source(registry: Registry, kind: str, values: dict[str, Any], where: str) -> ModelSource:
    from pydantic import ValidationError

    if kind not in registry.models:
        raise InputError(f"the model source '{kind}' is not installed", fix="'qplug plugins' shows why")
    try:
        return registry.models[kind](registry.models[kind].Config(**values))
    except ValidationError as error:
        first = error.errors()[0]
        what = first["msg"].removeprefix("Value error, ")
        raise InputError(": ".join(filter(None, [".".join(map(str, first["loc"])), what])), where=where) from None
