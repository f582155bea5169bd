"""COCO's average precision, by pycocotools, of detections in memory."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qplug.core.errors import InputError
from qplug.core.instances import Instances

INSTALL = "pip install 'qplug[detection]'"
Rows = list[dict[str, Any]]


class CocoJudge:
    """COCO's measures of detections against the objects of images.

    Args:
        labels: the objects of each image.
        kind: ``bbox`` compares boxes, ``segm`` compares masks.

    Raises:
        InputError: pycocotools is not installed, or no image has an object.
    """

    def __init__(self, labels: Sequence[Instances], kind: str = "bbox") -> None:
        try:
            from pycocotools.coco import COCO
        except ImportError as error:
            raise InputError("COCO's measures need the package 'pycocotools'", fix=INSTALL) from error
        self.labels, self.kind, self._coco = labels, kind, COCO
        objects = [row for image, label in enumerate(labels) for row in _objects(image, label)]
        if not objects:
            what = "no image of the evaluation data has an object, so that no average precision can be measured"
            raise InputError(what, where="data.evaluation", fix="give annotated images")
        for index, row in enumerate(objects, start=1):
            row["id"] = index
        self._classes = sorted({row["category_id"] for row in objects})
        self._truth = self._dataset(objects)

    def measures(self, detections: Sequence[Rows]) -> tuple[float, float]:
        """AP, the mean over IoUs of 0.50 to 0.95, and AP50, of the detections of each image; fractions."""
        evaluator = self._evaluator(detections)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        return float(max(evaluator.stats[0], 0.0)), float(max(evaluator.stats[1], 0.0))

    def by_image(self, detections: Sequence[Rows]) -> NDArray[np.float32]:
        """(N,) float32: the AP of each image alone, over the classes of its objects; NaN for an image without any."""
        evaluator, found = self._evaluator(detections), []
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluator.params.maxDets = [100]
        for image, label in enumerate(self.labels):
            own = sorted({kind for kind, crowd in zip(label.classes, label.crowd, strict=True) if not crowd})
            if not own:
                found.append(math.nan)
                continue
            evaluator.params.imgIds, evaluator.params.catIds = [image], own
            with contextlib.redirect_stdout(io.StringIO()):
                evaluator.evaluate()
                evaluator.accumulate()
            precision = evaluator.eval["precision"]
            found.append(float(precision[precision > -1].mean()))
        return np.array(found, dtype=np.float32)

    def _evaluator(self, detections: Sequence[Rows]) -> Any:
        from pycocotools.cocoeval import COCOeval

        rows = [{**row, "image_id": image, "iscrowd": 0} for image, some in enumerate(detections) for row in some]
        for index, row in enumerate(rows, start=1):
            row["id"] = index
            row["area"] = _area(row)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator = COCOeval(self._truth, self._dataset(rows), self.kind)
        evaluator.params.catIds = self._classes
        return evaluator

    def _dataset(self, rows: Rows) -> Any:
        dataset = self._coco()
        dataset.dataset = {
            "images": [{"id": i, "height": one.size[0], "width": one.size[1]} for i, one in enumerate(self.labels)],
            "annotations": rows,
            "categories": [{"id": kind} for kind in sorted({row["category_id"] for row in rows})],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            dataset.createIndex()
        return dataset


def _area(row: dict[str, Any]) -> float:
    """The area by which COCO sorts a detection that matches nothing: that of its mask, or of its box."""
    if "segmentation" in row:
        from pycocotools import mask

        return float(mask.area(row["segmentation"]))
    return float(row["bbox"][2] * row["bbox"][3])


def _objects(image: int, label: Instances) -> Rows:
    """The objects of an image in COCO's layout, without ids."""
    rows = []
    parts = zip(label.boxes, label.classes, label.crowd, label.areas, strict=True)
    for index, ((x1, y1, x2, y2), kind, crowd, area) in enumerate(parts):
        box = [x1, y1, x2 - x1, y2 - y1]
        row = {"image_id": image, "category_id": kind, "bbox": box, "area": area, "iscrowd": int(crowd)}
        if label.masks is not None:
            row["segmentation"] = label.masks[index]
        rows.append(row)
    return rows
