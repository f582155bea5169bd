"""Data source of generated scenes: simple shapes with boxes and masks. Importing this module does not import torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from qplug.core.component import Config, DataSource
from qplug.core.examples import Classes
from qplug.core.instances import Box, Instances
from qplug.core.storage.hashing import sha256
from qplug.data.loading import IMAGES, choose

if TYPE_CHECKING:
    from numpy.random import Generator
    from PIL import Image

SIDE = 96
"""Height and width of a scene in pixels."""
SCENES = {"train": 2000, "test": 200}
KINDS = {"disc": 48, "square": 4, "triangle": 3}
"""Name → corners; a disc is a polygon of many. Labels count from 1, as torchvision's detectors do."""
RADII = (7.0, 20.0)
"""Smallest and largest distance of a shape's corners from its centre, in pixels."""
TRIES = 20
Corners = list[tuple[float, float]]


class Shapes(DataSource):
    """Scenes of 96×96 pixels with one to four discs, squares and triangles of any color and turn, on noise.

    A scene is drawn from its split and its index alone, so that every seed of a recipe sees the same scenes. Shapes do
    not overlap. There are no files.
    """

    class Config(Config):
        """``data.*: {source: shapes_detection, split: test}``."""

        source: Literal["shapes_detection"]
        split: Literal["train", "test"] = Field(
            description="train: 2,000 scenes; test: 200 scenes that the zoo's detector did not train on"
        )
        images: int | None = Field(default=None, ge=1, description=IMAGES)

    def open(self, seed: int) -> Scenes:
        """Draw the scenes' indices; raises ``InputError`` if there are fewer than ``images``."""
        split = self.config.split
        return Scenes(split, choose(SCENES[split], self.config.images, seed, f"shapes_detection/{split}"))

    def key(self, seed: int) -> dict[str, Any]:
        """The configuration, the seed, and the versions of NumPy and Pillow, which determine the pixels."""
        versions = {name: version(name) for name in ("numpy", "pillow")}
        return {**self.config.model_dump(mode="json"), "seed": seed, "versions": versions}


class Scenes:
    """``Examples`` over one split."""

    classes = Classes({name: label for label, name in enumerate(KINDS, start=1)}, "shape", complete=False)

    def __init__(self, split: str, chosen: Sequence[int]) -> None:
        self._split, self._chosen = split, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> tuple[Image.Image, Instances]:
        return scene(self._split, self._chosen[index])

    def label(self, index: int) -> Instances:
        """The objects of a scene."""
        return self[index][1]

    def key(self, index: int) -> str:
        """The split with the index of the scene."""
        return f"shapes_detection/{self._split}/{self._chosen[index]}"

    def size_hint(self, index: int) -> int:
        """Bytes of the pixels."""
        return 3 * SIDE * SIDE

    def digest(self, index: int) -> str:
        """SHA-256 of the pixels."""
        return sha256(self[index][0].tobytes())


def scene(split: str, index: int) -> tuple[Image.Image, Instances]:
    """A scene and its objects."""
    import numpy as np
    from PIL import Image, ImageDraw

    draw = np.random.default_rng([SCENES[split], index])
    low, high = sorted(draw.integers(0, 160, 2))
    image = Image.fromarray(draw.integers(low, high + 20, (SIDE, SIDE, 3), dtype=np.uint8))
    pencil = ImageDraw.Draw(image)
    boxes: list[Box] = []
    classes, polygons = [], []
    for _ in range(int(draw.integers(1, 5))):
        found = _place(draw, boxes)
        if found is None:
            break
        kind, corners, box = found
        pencil.polygon(corners, fill=tuple(int(one) for one in draw.integers(0, 256, 3)))
        boxes.append(box)
        classes.append(kind)
        polygons.append([[round(value, 2) for corner in corners for value in corner]])
    areas = tuple(_area(polygon[0]) for polygon in polygons)
    label = Instances((SIDE, SIDE), tuple(boxes), tuple(classes), (False,) * len(boxes), areas, tuple(polygons))
    return image, label


def _place(draw: Generator, boxes: Sequence[Box]) -> tuple[int, Corners, Box] | None:
    """A shape's label, corners and box, apart from the other boxes; ``None`` if none of some places is free."""
    for _ in range(TRIES):
        kind = int(draw.integers(1, len(KINDS) + 1))
        radius, turn = float(draw.uniform(*RADII)), float(draw.uniform(0.0, 2.0 * math.pi))
        x, y = (float(value) for value in draw.uniform(radius + 1.0, SIDE - radius - 1.0, 2))
        count = list(KINDS.values())[kind - 1]
        angles = [turn + 2.0 * math.pi * step / count for step in range(count)]
        corners = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
        xs, ys = [corner[0] for corner in corners], [corner[1] for corner in corners]
        box = (round(min(xs), 2), round(min(ys), 2), round(max(xs), 2), round(max(ys), 2))
        if not any(_touch(box, other) for other in boxes):
            return kind, corners, box
    return None


def _touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _area(polygon: Sequence[float]) -> float:
    """The area of a polygon x, y, x, y, … by the shoelace formula."""
    xs, ys = polygon[0::2], polygon[1::2]
    pairs = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
    return abs(sum(x * next_y - next_x * y for x, y, next_x, next_y in pairs)) / 2.0
