"""Images of several sizes in memory, with the objects in them: batches of a detector's loader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from qplug.core.errors import InputError
from qplug.core.instances import Instances
from qplug.core.types import Extra
from qplug.data.memory import TensorExamples

PYCOCOTOOLS = Extra("pycocotools", "pip install 'qplug[detection]'")
LOADER = (
    "yield (images, targets) as torchvision's detectors take them: a list of tensors (3, H, W), and a list of dicts"
)


class ListedImages(TensorExamples):
    """``Examples`` of images (3, H, W) in 0 … 1, each of any size, with targets as torchvision's detectors take them.

    Args:
        batches: lists of images, or pairs of images and targets: dicts of ``boxes`` (N, 4), ``labels`` (N,) and, if
            there are masks, ``masks`` (N, H, W). All are held in memory.
        name: name of the data in errors.
        labelled: whether targets are read.
        limit: number of images to take; all if ``None``.

    Raises:
        InputError: there are no images, the loader raises, or a batch is none of these.
    """

    def __init__(self, batches: Iterable[Any], name: str, *, labelled: bool = True, limit: int | None = None) -> None:
        self._targets = labelled
        super().__init__(batches, name, limit=limit, annotated=labelled)

    def _split(self, batch: Any, index: int) -> tuple[Any, Any]:
        """The images of a batch, and their objects or ``None``."""
        where = f"{self._name}, batch {index}"
        parts = list(batch) if isinstance(batch, (tuple, list)) else [batch]
        single = parts and isinstance(parts[0], Tensor) and parts[0].dim() == 3
        images, targets = (parts, None) if single else (parts[0] if parts else [], parts[1] if len(parts) > 1 else None)
        images = list(images) if isinstance(images, (tuple, list, Tensor)) else []
        if not images or not all(isinstance(one, Tensor) and one.dim() == 3 and len(one) == 3 for one in images):
            raise InputError("expected images (3, H, W)", where=where, fix=LOADER)
        if not self._targets:
            return images, None
        if targets is None or len(targets) != len(images):
            received = "none" if targets is None else f"{len(targets)}"
            raise InputError(f"expected {len(images)} targets, received {received}", where=where, fix=LOADER)
        return images, [_instances(one, target, where) for one, target in zip(images, targets, strict=True)]

    def _check(self, inputs: Any, index: int) -> None:
        """Images may have any size."""


def _instances(image: Tensor, target: Any, where: str) -> Instances:
    if not isinstance(target, Mapping) or not {"boxes", "labels"} <= target.keys():
        raise InputError("expected a target with boxes and labels", where=where, fix=LOADER)
    boxes, labels = target["boxes"].float(), target["labels"]
    if boxes.dim() != 2 or boxes.shape[1] != 4 or len(labels) != len(boxes):
        what = f"expected boxes (N, 4) and labels (N,), received {tuple(boxes.shape)} and {tuple(labels.shape)}"
        raise InputError(what, where=where, fix=LOADER)
    height, width = image.shape[1:]
    outside = (boxes < -1).any() or (boxes[:, 0::2] > width + 1).any() or (boxes[:, 1::2] > height + 1).any()
    if outside or (boxes[:, 2:] <= boxes[:, :2]).any():
        what = f"a box is empty or outside its image of {width} × {height} pixels"
        raise InputError(what, where=where, fix="give boxes as x1, y1, x2, y2 in pixels")
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = target["area"] if "area" in target else sides.prod(1)
    crowd = target["iscrowd"] if "iscrowd" in target else torch.zeros(len(boxes))
    return Instances(
        size=(height, width),
        boxes=tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in boxes.tolist()),
        classes=tuple(labels.tolist()),
        crowd=tuple(bool(one) for one in crowd.tolist()),
        areas=tuple(areas.tolist()),
        masks=_masks(target["masks"]) if "masks" in target else None,
    )


def _masks(masks: Tensor) -> tuple[Any, ...]:
    """Run lengths of masks (N, H, W), as COCO has them."""
    if PYCOCOTOOLS.missing:
        raise InputError("masks need the package 'pycocotools'", where="evaluation", fix=PYCOCOTOOLS.install)
    import numpy as np
    from pycocotools import mask

    found = [mask.encode(np.asfortranarray((one > 0).to(torch.uint8).cpu().numpy())) for one in masks]
    return tuple({"size": list(one["size"]), "counts": one["counts"].decode()} for one in found)
