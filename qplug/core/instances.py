"""``Instances``: the objects of an image, as a label. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from qplug.core.examples import Annotation

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels."""


@dataclass(frozen=True)
class Instances(Annotation):
    """The objects of one image.

    Attributes:
        size: height and width of the image in pixels.
        boxes: of each object, in pixels of the image.
        classes: of each object, as the model numbers them.
        crowd: whether a box holds many objects, so that any number of detections in it is neither right nor wrong.
        areas: of each object in square pixels, as COCO counts small, medium and large ones.
        masks: of each object, COCO's polygons (a list of lists x, y, x, y, …) or run lengths (a dict); or ``None``.
        scale: pixels of the model's input for each pixel of the image, along x and y; the model's boxes are divided
            by it.
    """

    size: tuple[int, int]
    boxes: tuple[Box, ...]
    classes: tuple[int, ...]
    crowd: tuple[bool, ...]
    areas: tuple[float, ...]
    masks: tuple[Any, ...] | None = None
    scale: tuple[float, float] = (1.0, 1.0)

    def content(self) -> list[Any]:
        """Everything but the scale, which the model's preparation gives."""
        masks = list(self.masks) if self.masks is not None else None
        return [self.size, self.boxes, self.classes, self.crowd, self.areas, masks]

    def scaled(self, x: float, y: float) -> Instances:
        """The same objects of an image that the model sees with ``x`` and ``y`` pixels for each of its own."""
        return replace(self, scale=(x, y))
