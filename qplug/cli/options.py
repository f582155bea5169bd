"""What analyses share on the command line: the images to look at, configurations, and files to draw into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from qplug.core.errors import InputError
from qplug.core.storage.atomic import check_file

if TYPE_CHECKING:
    from qplug.core.component import DataSource

T = TypeVar("T")
Model = Annotated[str, typer.Argument(help="A model of the zoo, timm's name, or module:function.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights to load.", show_default=False)]
ClassMap = Annotated[
    Path | None, typer.Option(help="Class folders, one a line; labels are not used.", show_default=False)
]
Picture = Annotated[Path | None, typer.Option(help="PNG or SVG file to draw.", show_default=False)]
FOLDER = "Folder of class folders or of parquet files to {purpose}."
PICTURES = (".png", ".svg")


@dataclass(frozen=True)
class Wanted:
    """Images that an option names.

    Attributes:
        option: for example ``--calibration``.
        path: of the folder that it was given.
        images: how many, all if ``None``.
        split: of the digits, which the embedded models bring, or of parquet files.
        purpose: what they are needed for, as the error says it.
    """

    option: str
    path: Path | None
    images: int | None
    split: str
    purpose: str


def image_sources(
    kind: str, model: str, wanted: Sequence[Wanted], class_map: Path | None, where: str
) -> list[DataSource]:
    """Sources of the images: the folders that were named, or where none was, for the embedded models, the digits.

    A folder holds images in class folders, or parquet files, where the split's name tells which.

    Args:
        kind: the model's source.
        model: its name.
        wanted: the sets of images.
        class_map: a file with the class folders, one a line.
        where: the command, for errors.
    """
    from qplug.models.zoo import ZOO

    missing = [one.option for one in wanted if one.path is None]
    embedded = [name for name, entry in ZOO.items() if entry.embedded]
    if kind == "zoo" and model in embedded and len(missing) == len(wanted) and class_map is None:
        return [_source("digits", split=one.split, images=one.images) for one in wanted]
    if missing:
        folders = "a folder" if len(wanted) == 1 else "folders"
        raise InputError(
            f"{model} needs images {' and '.join(one.purpose for one in wanted)}, and {' and '.join(missing)} "
            f"{'were' if len(missing) > 1 else 'was'} not given",
            where=where,
            fix=f"add {' '.join(f'{one.option} FOLDER' for one in wanted)}, {folders} with images in a folder for each "
            f"class, or with parquet files; only the embedded models ({', '.join(embedded)}) bring images of their own",
        )
    return [_folder(one, class_map) for one in wanted]


def _folder(wanted: Wanted, class_map: Path | None) -> DataSource:
    assert wanted.path is not None
    more = {"class_map": str(class_map)} if class_map else {}
    if not more and next(wanted.path.rglob("*.parquet"), None) is not None:
        return _source("hf", path=str(wanted.path), split=wanted.split, images=wanted.images)
    return _source("folder", path=str(wanted.path), images=wanted.images, **more)


def _source(kind: str, **values: Any) -> DataSource:
    from qplug.hooks.registry import installed

    sources = installed().datasets
    if kind not in sources:
        raise InputError(f"the data source '{kind}' is not installed", fix="'qplug plugins' says why")
    return sources[kind](checked(sources[kind].Config, source=kind, **values))


def checked(config: Callable[..., T], technique: str = "", **values: Any) -> T:
    """A validated configuration; raises ``InputError`` with the first thing that is wrong, at its option."""
    from pydantic import ValidationError

    try:
        return config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        where = f"{technique}: {name}" if technique else f"--{name.replace('_', '-')}"
        raise InputError(f"{first['msg']}, received {first['input']!r}", where=where) from None


def check_picture(path: Path | None) -> None:
    """Refuse a picture that could not be written, or not in a format that its name asks for."""
    if path is None:
        return
    check_file(path, "--picture")
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"expected a name in {' or '.join(PICTURES)}, received {path.name!r}", where="--picture")
