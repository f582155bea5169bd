"""Options that ``inspect`` and ``sensitivity`` share beside MODEL: images, configurations and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from qplug.core.errors import InputError
from qplug.core.storage.atomic import check_file

if TYPE_CHECKING:
    from qplug.cli.model_option import ChosenModel
    from qplug.core.component import DataSource
    from qplug.recipe import Recipe

T = TypeVar("T")
ClassMap = Annotated[
    Path | None, typer.Option(help="File with one class folder in each line; labels are not used.", show_default=False)
]
Picture = Annotated[Path | None, typer.Option(help="PNG or SVG file to write a picture to.", show_default=False)]
FOLDER = "Images to {purpose}: a folder of class folders or of parquet files."
PICTURES = (".png", ".svg")


@dataclass(frozen=True)
class ImageOption:
    """Images that an option of the command line names.

    Attributes:
        option: name of the option, such as ``--calibration``.
        path: folder that the option received.
        images: number of images, all if ``None``.
        split: split of the digits, the data of the embedded models, or of the parquet files.
        purpose: use of the images, for the error message.
    """

    option: str
    path: Path | None
    images: int | None
    split: str
    purpose: str


def image_sources(
    model: ChosenModel, options: Sequence[ImageOption], class_map: Path | None, where: str
) -> list[DataSource]:
    """Data sources of the images. Without folders, a recipe's own data are used, or the digits for embedded models.

    A folder holds images in class folders, or parquet files that are chosen by the name of the split.

    Args:
        model: what MODEL names.
        options: sets of images.
        class_map: file with one class folder in each line.
        where: name of the command, for errors.
    """
    from qplug.models.zoo import ZOO

    missing = [option.option for option in options if option.path is None]
    if model.recipe is not None and len(missing) == len(options) and class_map is None:
        return [_of_recipe(model.recipe, option) for option in options]
    embedded = [name for name, entry in ZOO.items() if entry.embedded]
    if model.source.name() == "zoo" and model.name in embedded and len(missing) == len(options) and class_map is None:
        return [_source("digits", split=option.split, images=option.images) for option in options]
    if missing:
        folders = "a folder" if len(options) == 1 else "folders"
        purposes = " and ".join(option.purpose for option in options)
        raise InputError(
            f"{model.name} needs images {purposes}, and {' and '.join(missing)} "
            f"{'were' if len(missing) > 1 else 'was'} not given",
            where=where,
            fix=f"add {' '.join(f'{option.option} FOLDER' for option in options)}, {folders} with a subfolder of "
            f"images for each class or with parquet files; only the embedded models ({', '.join(embedded)}) have "
            "images of their own",
        )
    return [_folder(option, class_map) for option in options]


def _of_recipe(recipe: Recipe, option: ImageOption) -> DataSource:
    """The recipe's data of that purpose; as many examples as the option asks for, if the source takes a number."""
    from qplug.hooks.registry import component, installed

    config = recipe.data.calibration if option.split == "train" else recipe.data.evaluation
    if option.images is not None and "images" in type(config).model_fields:
        config = config.model_copy(update={"images": option.images})
    return component(installed().datasets, config)


def _folder(option: ImageOption, class_map: Path | None) -> DataSource:
    assert option.path is not None
    more = {"class_map": str(class_map)} if class_map else {}
    if not more and next(option.path.rglob("*.parquet"), None) is not None:
        return _source("hf", path=str(option.path), split=option.split, images=option.images)
    return _source("folder", path=str(option.path), images=option.images, **more)


def _source(kind: str, **values: Any) -> DataSource:
    from qplug.hooks.registry import installed

    sources = installed().datasets
    if kind not in sources:
        raise InputError(f"the data source '{kind}' is not installed", fix="'qplug plugins' shows why")
    return sources[kind](checked(sources[kind].Config, source=kind, **values))


def checked(config: Callable[..., T], technique: str = "", **values: Any) -> T:
    """A validated configuration; raises ``InputError`` with the first wrong value and its option."""
    from pydantic import ValidationError

    try:
        return config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        where = f"{technique}: {name}" if technique else f"--{name.replace('_', '-')}"
        raise InputError(f"{first['msg']}, received {first['input']!r}", where=where) from None


def check_picture(path: Path | None) -> None:
    """Raise ``InputError`` if the picture cannot be written, or its suffix is not a supported format."""
    if path is None:
        return
    check_file(path, "--picture")
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"expected a name in {' or '.join(PICTURES)}, received {path.name!r}", where="--picture")
