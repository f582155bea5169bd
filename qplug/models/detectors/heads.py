"""Heads behind pooled regions, in torchvision's layout of classes: background first."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import batched_nms, clip_boxes_to_image

from qplug.models.detectors.boxes import Coder

REGION, MASK = 7, 14
"""Rows and columns of a pooled region for its box, and for its mask."""


class BoxPredictor(nn.Module):
    """Scores of the background and of every class, and box codes.

    torchvision's has codes for the background as well, which nothing reads: here they are zeros, and no weights.
    With ``agnostic``, all classes have the same codes.
    """

    def __init__(self, channels: int, classes: int, agnostic: bool) -> None:
        """``channels``: of a region's features; ``classes``: without the background."""
        super().__init__()
        self.classes, self.agnostic = classes, agnostic
        self.cls_score = nn.Linear(channels, classes + 1)
        self.bbox_pred = nn.Linear(channels, 4 if agnostic else 4 * classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (N, channels) → scores (N, 1 + classes), background first, and codes (N, 4·(1 + classes))."""
        codes = self.bbox_pred(x)
        if self.agnostic:
            codes = codes.repeat(1, self.classes)
        return self.cls_score(x), F.pad(codes, (4, 0))


class MaskPredictor(MaskRCNNPredictor):  # type: ignore[misc]  # torchvision has no types
    """Masks of every class; torchvision's has a mask of the background, which nothing reads: here it is zeros."""

    def __init__(self, channels: int, hidden: int, classes: int) -> None:
        """``channels``, ``hidden``: before and after the transposed convolution; ``classes``: of objects."""
        super().__init__(channels, hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, channels, h, w) → (N, 1 + classes, 2h, 2w)."""
        return F.pad(super().forward(x), (0, 0, 0, 0, 1, 0))


class Heads(RoIHeads):  # type: ignore[misc]  # torchvision has no types
    """torchvision's ``RoIHeads`` with ``Coder``, which keeps detections of any size.

    torchvision leaves out those narrower than 0.01 pixels.
    """

    def __init__(self, weights: tuple[float, float, float, float], **settings: Any) -> None:
        """``weights``: of the box codes; ``settings``: of ``RoIHeads``."""
        super().__init__(bbox_reg_weights=weights, **settings)
        self.box_coder = Coder(weights)

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes, scores and labels of each image, in falling order of scores."""
        sizes = [len(one) for one in proposals]
        boxes = self.box_coder.decode(box_regression, proposals).reshape(len(class_logits), -1, 4)
        parts = boxes.split_with_sizes(sizes), class_logits.softmax(-1).split_with_sizes(sizes)
        found = [self._best(*one) for one in zip(*parts, image_shapes, strict=True)]
        return [one[0] for one in found], [one[1] for one in found], [one[2] for one in found]

    def _best(self, boxes: Tensor, scores: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """boxes: (N, 1 + classes, 4), scores: (N, 1 + classes) of one image."""
        region, label = (scores[:, 1:] > self.score_thresh).nonzero(as_tuple=True)
        label = label + 1
        boxes, scores = clip_boxes_to_image(boxes[region, label], shape), scores[region, label]
        kept = batched_nms(boxes, scores, label, self.nms_thresh)[: self.detections_per_img]
        return boxes[kept], scores[kept], label[kept]


def box_head(channels: int, hidden: int, convolutions: int) -> nn.Module:
    """Two linear layers; or ``convolutions`` of 3×3 with BatchNorm, and one linear layer."""
    if not convolutions:
        head: nn.Module = TwoMLPHead(channels * REGION**2, hidden)
        return head
    size = (channels, REGION, REGION)
    return FastRCNNConvFCHead(size, [channels] * convolutions, [hidden], norm_layer=nn.BatchNorm2d)  # type: ignore[no-any-return]  # untyped


def mask_head(channels: int, hidden: int) -> nn.Module:
    """Four convolutions of 3×3."""
    head: nn.Module = MaskRCNNHeads(channels, (hidden,) * 4, dilation=1)
    return head
