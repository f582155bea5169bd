"""``LabelMap``: the class of every pixel of an image, and counts of classes over pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qplug.core.examples import Annotation
from qplug.core.storage.hashing import fingerprint

IGNORE = 255
"""The value of pixels that are not judged."""


@dataclass(frozen=True, eq=False)
class LabelMap(Annotation):
    """The class of every pixel of one image.

    Attributes:
        values: (H, W) uint8, ``IGNORE`` where a pixel is not judged; of the image's own size.
    """

    values: Tensor

    def content(self) -> Any:
        """The digest of the map."""
        return fingerprint({"map": self.values})


def confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64: the number of pixels by true class (row) and predicted class (column).

    Args:
        truth: (H, W) uint8 with classes below ``classes``, or ``IGNORE``.
        predicted: (H, W) int64.
        classes: number of classes.
    """
    judged = truth != IGNORE
    pairs = truth[judged].long() * classes + predicted[judged]
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def mean_iou(counts: Tensor) -> float:
    """The mean over classes of intersection / union; a class that neither truth nor prediction has is left out.

    NaN if no pixel is judged.

    Args:
        counts: of ``confusion``, or a sum of several.
    """
    hit = counts.diagonal().double()
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    present = union > 0
    return float((hit[present] / union[present]).mean()) if bool(present.any()) else float("nan")


def pixel_accuracy(counts: Tensor) -> float:
    """The share of judged pixels whose class is right; NaN if no pixel is judged."""
    total = int(counts.sum())
    return int(counts.diagonal().sum()) / total if total else float("nan")
