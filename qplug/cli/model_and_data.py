"""``--model`` and ``--data`` of ``run`` and ``init``: values of a recipe, found from a model's name and a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qplug.cli.model_option import choose_model
from qplug.core.errors import InputError
from qplug.core.text import listed

if TYPE_CHECKING:
    from qplug.data.find import FoundData
    from qplug.recipe import AllowCode, Recipe
    from qplug.recipe.overrides import SetOption

ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Model in the place of the recipe's: timm:NAME, or any MODEL of qplug inspect.",
        show_default=False,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Folder with train and val, in the place of the recipe's data.", show_default=False),
]
RANK = 0
"""Of the problems of these options: before those of ``--set``, which changes their values."""
TRAIN_IMAGES = 64
"""Calibration images where the recipe's own data do not say a number."""


@dataclass
class Given:
    """What ``--model`` and ``--data`` set in a recipe.

    Attributes:
        values: plain values by dotted key.
        notes: what was found, one sentence each.
        left_out: patterns of overrides that hold for the recipe's own model alone.
    """

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def options(self) -> list[SetOption]:
        """The same as options for ``load_recipe``, before every ``--set``."""
        from qplug.recipe.overrides import option

        return [
            option(key, value, "--data" if key.startswith("data") else "--model", RANK)
            for key, value in self.values.items()
        ]


def given(
    recipe: Recipe, model: str | None, checkpoint: Path | None, data: Path | None, *, allow_code: AllowCode = False
) -> Given:
    """The values of the options for ``recipe``, whose number of calibration images is kept.

    timm's model has its pretrained weights, unless ``checkpoint`` names others.

    Raises:
        InputError: an option cannot be used, or the recipe's own images do not suit the model.
    """
    found = Given()
    parts = _data(found, data, recipe) if data is not None else None
    if model is not None:
        chosen = choose_model(model, checkpoint, None, shapes_only=False, allow_code=allow_code)
        values = chosen.source.config.model_dump(mode="json", exclude_defaults=True)
        if values["source"] == "timm" and chosen.recipe is None:
            _weights(values, checkpoint, parts, found)
        found.values["model"] = values
        found.notes += chosen.notes
        _overrides(found, recipe)
        own = getattr(recipe.data.calibration, "source", "")
        if data is None and own == "digits" and values["source"] != "zoo":
            what = f"{model} needs images, and the recipe's are the digits of the embedded models"
            raise InputError(what, where="--model", fix="add --data FOLDER, with train and val in it")
    elif checkpoint is not None:
        raise InputError(
            "needs --model, which was not given", where="--checkpoint", fix="or --set model.checkpoint_path"
        )
    return found


def _data(found: Given, root: Path, recipe: Recipe) -> FoundData:
    from qplug.data.find import find_data

    parts = find_data(root)
    images = getattr(recipe.data.calibration, "images", None) or TRAIN_IMAGES
    found.values["data.calibration"] = parts.train | {"images": images}
    found.values["data.evaluation"] = parts.held_out
    if recipe.data.training is not None:
        found.values["data.training"] = _labelled(parts)
    found.notes += parts.notes
    return parts


def _overrides(found: Given, recipe: Recipe) -> None:
    """Leave out overrides of single layers of the recipe's own model, unless it is the model that was given."""
    from qplug.recipe.named import layers_of_its_own

    own = layers_of_its_own(recipe.quantize)
    if own and getattr(recipe.model, "name", None) != found.values["model"].get("name"):
        rest = [override for override in recipe.quantize.overrides if override.match not in own]
        found.values["quantize.overrides"] = [
            override.model_dump(mode="json", exclude_defaults=True) for override in rest
        ]
        found.left_out = own
        found.notes.append(f"left out: the override {listed(own)} of the recipe, which names a layer of another model")


def _labelled(parts: FoundData) -> dict[str, Any]:
    """The training part with the labels of the held-out one."""
    more = {key: value for key, value in parts.held_out.items() if key == "class_map"}
    return {**parts.train, **more}


def _weights(values: dict[str, Any], checkpoint: Path | None, parts: FoundData | None, found: Given) -> None:
    """timm's own weights; a checkpoint of one's own has as many classes as the data."""
    if checkpoint is None:
        values["pretrained"] = True
        found.notes.append(f"model: timm's {values['name']} with its pretrained weights")
    elif parts is not None and parts.classes is not None:
        values["num_classes"] = parts.classes
        found.notes.append(f"model: {values['name']} with {parts.classes} outputs, one for each class folder")
