"""Mask R-CNN and Cascade Mask R-CNN by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from qplug.models.detectors.boxes import RATIOS, Anchors, Coder, RegionPool
from qplug.models.detectors.cascade import CascadeHeads
from qplug.models.detectors.heads import MASK, REGION, BoxPredictor, Heads, MaskPredictor, box_head, mask_head
from qplug.models.detectors.swin_fpn import SwinFPN
from qplug.models.detectors.transform import Resize


@dataclass(frozen=True)
class Architecture:
    """Sizes of a detector; the defaults are those of MMDetection's Mask R-CNN on Swin-T.

    Attributes:
        swin: timm's name of the backbone.
        cascade: three stages of heads rather than one.
        classes: without the background.
        channels: of the pyramid, the RPN and the mask heads.
        hidden: of the linear layers of box heads.
        convolutions: before the linear layer of a box head, each with BatchNorm; 0: two linear layers.
        agnostic: whether all classes have the same box codes.
        anchor: √area of anchors, in strides.
        short, long: sides of the resized image in pixels (see ``Resize``).
        proposals: of the RPN, for each level before and for each image after suppression.
        ids: the label of each class; from 1 if ``None``.
        overrides: arguments of timm's Swin that replace those of its name.
    """

    swin: str = "swin_tiny_patch4_window7_224"
    cascade: bool = False
    classes: int = 80
    channels: int = 256
    hidden: int = 1024
    convolutions: int = 0
    agnostic: bool = False
    anchor: float = 8.0
    short: int = 800
    long: int = 1333
    proposals: int = 1000
    ids: tuple[int, ...] | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


class MaskRCNN(GeneralizedRCNN):  # type: ignore[misc]  # torchvision has no types
    """Mask R-CNN on Swin: torchvision's parts, with MMDetection's arithmetic where the two differ.

    Input: a list of images (3, H, W) in 0 … 1, of any sizes. Output: for each image a dict of ``boxes`` (N, 4) in
    pixels, ``labels`` (N,), ``scores`` (N,) in falling order, and ``masks`` (N, 1, H, W) in 0 … 1; at most 100
    detections. In training mode it takes targets too, and returns torchvision's losses.

    Suppression follows MMDetection's settings: 1,000 proposals by an IoU of 0.7 within each level; detections of at
    least 0.05 by an IoU of 0.5 within each class.
    """

    def __init__(self, architecture: Architecture) -> None:
        """Build it with random weights."""
        a = architecture
        backbone = SwinFPN(a.swin, a.channels, a.overrides)
        super().__init__(backbone, _proposals(a), self._heads(a), Resize(a.short, a.long))
        self.architecture = a
        ids = a.ids or range(1, a.classes + 1)
        self.register_buffer("ids", torch.tensor([0, *ids]), persistent=False)

    def _heads(self, a: Architecture) -> nn.Module:
        box, predictor, mask, mask_predictor = _stage(a)
        parts = {"box_head": box, "box_predictor": predictor, "mask_head": mask, "mask_predictor": mask_predictor}
        return Heads((10.0, 10.0, 5.0, 5.0), **parts, **_settings())

    def forward(self, images: list[Tensor] | Tensor, targets: Any = None) -> Any:
        """Detections of each image; in training mode losses by name."""
        found = super().forward(list(images), targets)
        if not self.training:
            for one in found:
                one["labels"] = self.ids[one["labels"]]
        return found


class CascadeMaskRCNN(MaskRCNN):
    """Cascade Mask R-CNN on Swin, with the heads of ``CascadeHeads``; otherwise as ``MaskRCNN``, without training."""

    def _heads(self, a: Architecture) -> nn.Module:
        return CascadeHeads(partial(_stage, a), **_settings())


class _Proposals(RegionProposalNetwork):  # type: ignore[misc]  # torchvision has no types
    """torchvision's RPN, which keeps boxes of any positive size; torchvision leaves out those below 0.001 pixels."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.box_coder, self.min_size = Coder((1.0, 1.0, 1.0, 1.0)), 1e-30


def _proposals(a: Architecture) -> nn.Module:
    head = RPNHead(a.channels, len(RATIOS))
    kept = {"training": 2 * a.proposals, "testing": a.proposals}
    return _Proposals(
        Anchors(a.anchor),
        head,
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=kept,
        post_nms_top_n=kept,
        nms_thresh=0.7,
    )


def _stage(a: Architecture) -> tuple[nn.Module, ...]:
    """Box head, box predictor, mask head, mask predictor."""
    return (
        box_head(a.channels, a.hidden, a.convolutions),
        BoxPredictor(a.hidden, a.classes, a.agnostic),
        mask_head(a.channels, a.channels),
        MaskPredictor(a.channels, a.channels, a.classes),
    )


def _settings() -> dict[str, Any]:
    return {
        "box_roi_pool": RegionPool(REGION),
        "mask_roi_pool": RegionPool(MASK),
        "fg_iou_thresh": 0.5,
        "bg_iou_thresh": 0.5,
        "batch_size_per_image": 512,
        "positive_fraction": 0.25,
        "score_thresh": 0.05,
        "nms_thresh": 0.5,
        "detections_per_img": 100,
    }


COCO = tuple(label for label in range(1, 91) if label not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""The ids of COCO's 80 categories."""
_TINY = Architecture(ids=COCO)
_CASCADE = Architecture(ids=COCO, cascade=True, convolutions=4)
_SMALL, _BASE = "swin_small_patch4_window7_224", "swin_base_patch4_window7_224"
ARCHITECTURES = {
    "mask_rcnn_swin_t": _TINY,
    "mask_rcnn_swin_s": replace(_TINY, swin=_SMALL),
    "cascade_mask_rcnn_swin_t": _CASCADE,
    "cascade_mask_rcnn_swin_s": replace(_CASCADE, swin=_SMALL),
    "cascade_mask_rcnn_swin_b": replace(_CASCADE, swin=_BASE),
}
"""The detectors of Swin's authors by name: those of MPTQ-ViT's Table 4, and Cascade Mask R-CNN on Swin-B."""


def build(architecture: Architecture) -> MaskRCNN:
    """The detector, with random weights."""
    return (CascadeMaskRCNN if architecture.cascade else MaskRCNN)(architecture)
