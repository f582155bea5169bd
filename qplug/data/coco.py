"""Data source of images with objects, in COCO's layout. Importing this module does not import torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from qplug.core.component import Config, DataSource
from qplug.core.errors import InputError
from qplug.core.examples import Classes
from qplug.core.instances import Instances
from qplug.core.storage.hashing import file_digest
from qplug.core.storage.plain_file import refuse_special, require_file
from qplug.core.text import listed
from qplug.core.types import Extra
from qplug.data.image_files import decode, suffixes
from qplug.data.loading import IMAGES, choose

if TYPE_CHECKING:
    from PIL import Image

PYCOCOTOOLS = Extra("pycocotools", "pip install 'qplug[detection]'")
OUTSIDE = 1.0
"""Pixels by which a box may exceed its image: annotations are rounded."""


class Coco(DataSource):
    """Images in a folder, and a JSON file with their objects in COCO's layout: boxes, and masks if all have one.

    A category's label is its ``category_id``, as torchvision's detectors and DETR have it, or its ``position`` in the
    order of the ids, from 0, as YOLO's and many others do. An image without objects is a part of the data: what is
    detected there is wrong. Files that the JSON does not list are left out.
    """

    needs = (PYCOCOTOOLS,)

    class Config(Config):
        """``data.*: {source: coco, path: …/val2017, annotations: …/instances_val2017.json}``."""

        source: Literal["coco"]
        path: str = Field(min_length=1, description="the folder that holds the images")
        annotations: str = Field(min_length=1, description="the JSON file of the images' objects")
        labels: Literal["category_id", "position"] = Field(
            default="category_id",
            description="a category's label: its id in the file, or its position in the order of ids, from 0",
        )
        images: int | None = Field(default=None, ge=1, description=IMAGES)

    def open(self, seed: int) -> CocoImages:
        """Read the annotations and draw images.

        Raises:
            InputError: a file is missing or is no such file, an image has no file, or an object is not valid.
        """
        root, file = Path(self.config.path).expanduser(), Path(self.config.annotations).expanduser()
        refuse_special(root, "folder")
        if not root.is_dir():
            raise InputError(
                "is a file, not a folder" if root.exists() else "the folder does not exist", where=str(root)
            )
        tables = _tables(file)
        labels, classes = _classes(tables["categories"], self.config.labels, file)
        rows = _images(tables["images"], root, file)
        objects: dict[int, list[Mapping[str, Any]]] = {row["id"]: [] for row in rows}
        for one in tables["annotations"]:
            image = one.get("image_id")
            if image not in objects:
                what = f"annotation {one.get('id')} is of image {image!r}, which the file does not list"
                raise InputError(what, where=str(file), fix="remove it, or list the image")
            objects[image].append(one)
        if not tables["annotations"]:
            raise InputError("the file has no annotation of any object", where=str(file), fix="give annotated images")
        chosen = [rows[index] for index in choose(len(rows), self.config.images, seed, str(file))]
        found = [_instances(row, objects[row["id"]], labels, file) for row in chosen]
        return CocoImages(
            root, [row["file_name"] for row in chosen], found, classes, _notes(root, rows, found, objects)
        )


class CocoImages:
    """``Examples`` over files; holds paths and objects, no pixels.

    Attributes:
        classes: the categories with their labels.
        notes: what was left out.
    """

    def __init__(
        self, root: Path, names: Sequence[str], labels: Sequence[Instances], classes: Classes, notes: Sequence[str]
    ) -> None:
        self._root, self._names, self._labels = root, names, labels
        self.classes, self.notes = classes, list(notes)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[Image.Image, Instances]:
        path, label = self._root / self._names[index], self._labels[index]
        image = decode(path, str(path))
        if (image.height, image.width) != label.size:
            raise InputError(
                f"the image has {image.width} × {image.height} pixels, and its annotation says "
                f"{label.size[1]} × {label.size[0]}",
                where=str(path),
                fix="give the images that were annotated",
            )
        return image, label

    def label(self, index: int) -> Instances:
        """The objects of an image."""
        return self._labels[index]

    def key(self, index: int) -> str:
        """The file's path."""
        return str(self._root / self._names[index])

    def size_hint(self, index: int) -> int:
        """The file's size in bytes."""
        return require_file(self._root / self._names[index], "image").st_size

    def digest(self, index: int) -> str:
        """SHA-256 of the file."""
        return file_digest(self._root / self._names[index])


def _tables(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists ``images``, ``annotations`` and ``categories`` of the file."""
    require_file(file, "file of annotations")
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"the file of annotations is no JSON: {error}", where=str(file)) from error
    tables = {}
    for name in ("images", "annotations", "categories"):
        rows = content.get(name) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            what = f"the file of annotations has no list '{name}', as COCO's layout has"
            raise InputError(what, where=str(file), fix="give COCO's JSON of instances, such as instances_val2017.json")
        tables[name] = rows
    return tables


def _classes(rows: Sequence[Mapping[str, Any]], by: str, file: Path) -> tuple[dict[int, int], Classes]:
    """The label of each category id, and the categories by name."""
    names = {row.get("id"): str(row.get("name")) for row in rows}
    if not names or not all(isinstance(key, int) and not isinstance(key, bool) and key >= 0 for key in names):
        raise InputError("the file lists no categories with whole numbers as ids", where=str(file))
    ordered: list[int] = sorted(key for key in names if isinstance(key, int))
    labels = {key: key if by == "category_id" else place for place, key in enumerate(ordered)}
    how = "category id" if by == "category_id" else "position of the category"
    return labels, Classes({names[key]: labels[key] for key in ordered}, how, complete=False, option="labels")


def _images(rows: Sequence[dict[str, Any]], root: Path, file: Path) -> list[dict[str, Any]]:
    """The images, each with its file; raises ``InputError`` for one that has none, or is listed twice."""
    seen: set[Any] = set()
    for row in rows:
        lacking = [key for key in ("id", "file_name", "width", "height") if row.get(key) in (None, "")]
        if lacking:
            raise InputError(f"image {row.get('id')} has no {listed(lacking)}", where=str(file))
        if row["id"] in seen:
            raise InputError(f"image {row['id']} is listed twice", where=str(file), fix="list each image once")
        seen.add(row["id"])
    missing = [row["file_name"] for row in rows if not (root / row["file_name"]).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(rows)} images of the annotations have no file: {listed(missing)}",
            where=str(root),
            fix=f"set path to the folder of the images of {file.name}",
        )
    return list(rows)


def _instances(
    row: Mapping[str, Any], objects: Sequence[Mapping[str, Any]], labels: Mapping[int, int], file: Path
) -> Instances:
    """The objects of an image; those without area are left out, as ``_notes`` says."""
    size = (int(row["height"]), int(row["width"]))
    kept = [one for one in objects if not _is_empty(one)]
    boxes = []
    for one in kept:
        x, y, width, height = _box(one, size, file)
        boxes.append((x, y, x + width, y + height))
        if one.get("category_id") not in labels:
            what = f"annotation {one.get('id')} has category {one.get('category_id')!r}, which the file does not list"
            raise InputError(what, where=str(file), fix="list the category, or remove the annotation")
    masks = [one.get("segmentation") for one in kept]
    return Instances(
        size,
        tuple(boxes),
        tuple(labels[one["category_id"]] for one in kept),
        tuple(bool(one.get("iscrowd", 0)) for one in kept),
        tuple(float(one.get("area") or one["bbox"][2] * one["bbox"][3]) for one in kept),
        tuple(masks) if all(masks) and masks else None,
    )


def _is_empty(one: Mapping[str, Any]) -> bool:
    box = one.get("bbox")
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) == 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _box(one: Mapping[str, Any], size: tuple[int, int], file: Path) -> tuple[float, float, float, float]:
    """x, y, width and height; raises ``InputError`` unless they are a box within the image."""
    box, (height, width) = one.get("bbox"), size
    where = f"{file}, annotation {one.get('id')}"
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) > 0):
        raise InputError(f"bbox must be x, y, width and height in pixels, received {box!r}"[:200], where=where)
    x, y, w, h = map(float, box)
    if min(x, y) < -OUTSIDE or x + w > width + OUTSIDE or y + h > height + OUTSIDE:
        raise InputError(
            f"the box from ({x:g}, {y:g}) to ({x + w:g}, {y + h:g}) lies outside of its image of {width} × {height} "
            "pixels",
            where=where,
            fix="bbox is x, y, width, height in pixels of the image: not two corners, and not shares of its size",
        )
    return x, y, w, h


def _notes(
    root: Path, rows: Sequence[Mapping[str, Any]], found: Sequence[Instances], objects: Mapping[int, Sequence[Any]]
) -> list[str]:
    notes = []
    listed_names = {row["file_name"] for row in rows}
    known = suffixes()
    others = sum(
        path.suffix.lower() in known and path.relative_to(root).as_posix() not in listed_names
        for path in root.rglob("*")
        if path.is_file()
    )
    if others:
        notes.append(f"{root}: {others:,} images are not listed in the annotations, and left out")
    bare = sum(not label.boxes for label in found)
    if bare:
        notes.append(f"{bare:,} of {len(found):,} images have no object: every detection there is wrong")
    flat = sum(_is_empty(one) for some in objects.values() for one in some)
    if flat:
        notes.append(f"{flat:,} objects without width or height are left out")
    return notes
