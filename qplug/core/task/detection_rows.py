"""Detections as rows of a tensor: matching of two models' rows, suppression, and conversion to COCO's results."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qplug.core.instances import Instances

BOX, SCORE, CLASS, MASK = slice(0, 4), 4, 5, slice(6, None)
"""Columns of a detection: x1, y1, x2, y2 in pixels of the input, score in 0 … 1, class, then its mask, if any."""
SAME_OBJECT = 0.5
"""IoU from which two detections of one class are of the same object."""


def padded(rows: Tensor, limit: int) -> Tensor:
    """rows: (N, K) → (limit, K), the first ``limit``, then zeros: a detection of score 0 is none."""
    return F.pad(rows[:limit], (0, 0, 0, max(0, limit - len(rows))))


def suppressed(rows: Tensor, iou: float, threshold: float, limit: int) -> Tensor:
    """rows: (B, N, K) → (B, limit, K): non-maximum suppression within each class, best scores first, padded.

    Args:
        rows: candidates.
        iou: from which the lower of two scores is suppressed.
        threshold: scores must be above it.
        limit: detections of an image.
    """
    from torchvision.ops import batched_nms

    found = []
    for image in rows:
        some = image[image[:, SCORE] > threshold]
        found.append(padded(some[batched_nms(some[:, BOX], some[:, SCORE], some[:, CLASS], iou)], limit))
    return torch.stack(found)


def pairs(reference: Tensor, others: Tensor) -> Tensor:
    """(N,) int64: for each row of one image's ``reference`` (N, K) the row of ``others`` (M, K) of the same object.

    Rows of the reference choose in the order of their scores, each the free row of its class with the largest IoU of at
    least ``SAME_OBJECT``; −1 if there is none. Rows of score 0 are none.
    """
    from torchvision.ops import box_iou

    chosen = torch.full((len(reference),), -1)
    if not len(others):
        return chosen
    own, theirs = reference[:, BOX].detach().cpu(), others[:, BOX].detach().cpu()
    equal = (own[:, None] == theirs[None]).all(-1)  # boxes without area have no IoU, not even with themselves
    iou = torch.where(equal, 1.0, box_iou(own, theirs).nan_to_num(0.0))
    same = reference[:, None, CLASS].detach().cpu() == others[None, :, CLASS].detach().cpu()
    there = (reference[:, None, SCORE] > 0).cpu() & (others[None, :, SCORE] > 0).cpu()
    iou = torch.where(same & there, iou, torch.tensor(-1.0))
    for row in reference[:, SCORE].detach().cpu().argsort(descending=True, stable=True).tolist():
        best, other = (value.item() for value in iou[row].max(0))
        if best >= SAME_OBJECT:
            chosen[row] = int(other)
            iou[:, int(other)] = -1.0
    return chosen


def aligned(reference: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of ``outputs`` (B, N, K) in the order of those of ``reference``, and the rest, (B, N, K) each.

    A row of the reference without a counterpart has its own box and the score 0. The rest are the rows that have no
    counterpart in the reference, in their places; others are 0 there.
    """
    ordered, left = [], []
    for one, other in zip(reference, outputs, strict=True):
        chosen = pairs(one, other).to(outputs.device)
        missing = one.detach().clone()
        missing[:, SCORE] = 0.0
        ordered.append(torch.where(chosen[:, None] >= 0, other[chosen.clamp_min(0)], missing))
        free = torch.ones(len(other), dtype=torch.bool, device=outputs.device)
        free[chosen[chosen >= 0]] = False
        left.append(other * free[:, None])
    return torch.stack(ordered), torch.stack(left)


def common_share(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Of one image's detections (N, K): twice the score that both models give to the same objects, and all scores."""
    chosen = pairs(first, second)
    own, other = first[:, SCORE].double(), second[:, SCORE].double()
    matched = chosen >= 0
    common = torch.minimum(own[matched], other[chosen[matched]]).sum()
    return float(2.0 * common), float(own.sum() + other.sum())


def coco_results(rows: Tensor, label: Instances, side: int) -> list[dict[str, Any]]:
    """One image's detections (N, K) in COCO's layout, in pixels of the image, with masks of ``side``² pixels."""
    x, y = label.scale
    rows = rows[rows[:, SCORE] > 0].detach().cpu()
    boxes = (rows[:, BOX].double() / torch.tensor([x, y, x, y], dtype=torch.float64)).tolist()
    found = []
    for row, (x1, y1, x2, y2) in zip(rows, boxes, strict=True):
        result: dict[str, Any] = {
            "category_id": int(row[CLASS]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": float(row[SCORE]),
        }
        if side:
            result["segmentation"] = _run_lengths(row[MASK].view(side, side), (x1, y1, x2, y2), label.size)
        found.append(result)
    return found


def _run_lengths(mask: Tensor, box: tuple[float, float, float, float], size: tuple[int, int]) -> dict[str, Any]:
    """A mask of probabilities within a box as COCO's run lengths of the image: pixels whose centre has at least 0.5."""
    import numpy as np
    from pycocotools import mask as masks

    (left, top, right, bottom), (height, width) = box, size
    image = torch.zeros(height, width)
    x0, y0, x1, y1 = max(math.floor(left), 0), max(math.floor(top), 0), math.ceil(right), math.ceil(bottom)
    x1, y1 = min(x1, width), min(y1, height)
    if x1 > x0 and y1 > y0 and right > left and bottom > top:
        x = ((torch.arange(x0, x1) + 0.5 - left) / (right - left) * 2 - 1).float()
        y = ((torch.arange(y0, y1) + 0.5 - top) / (bottom - top) * 2 - 1).float()
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
        image[y0:y1, x0:x1] = F.grid_sample(mask[None, None].float(), grid[None], align_corners=False)[0, 0]
    found: dict[str, Any] = masks.encode(np.asfortranarray((image >= 0.5).numpy().astype(np.uint8)))
    return found
