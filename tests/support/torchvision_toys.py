"""torchvision's detectors at a size that takes milliseconds."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign


class Backbone(nn.Module):
    """Two convolutions: one map of stride 8."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 7, 4, 3), nn.Conv2d(8, 32, 3, 2, 1)

    def forward(self, x):
        """(B, 3, H, W) → (B, 32, H/8, W/8)."""
        return self.second(self.first(x).relu()).relu()


def small(kind: str = "faster", classes: int = 9, seed: int = 0) -> nn.Module:
    """A detector of torchvision that takes milliseconds, and detects something by chance."""
    sizes = {"min_size": 48, "max_size": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        anchors = AnchorGenerator(((8, 16, 24),), ((0.5, 1.0),))
        if kind == "retina":
            return _lively(RetinaNet(Backbone(), classes, anchor_generator=anchors, score_thresh=0.15, **sizes))
        if kind == "fcos":
            one = AnchorGenerator(((8,),), ((1.0,),))
            return _lively(FCOS(Backbone(), classes, anchor_generator=one, score_thresh=0.1, **sizes))
        pool = {"rpn_anchor_generator": anchors, "rpn_post_nms_top_n_test": 20, "box_score_thresh": 0.1}
        pool["box_roi_pool"] = MultiScaleRoIAlign(["0"], 5, 2)
        heads = {**pool, "box_head": nn.Sequential(nn.Flatten(), nn.Linear(800, 32), nn.ReLU())}
        predictor = Predictor(classes)
        if kind == "mask":
            heads["mask_roi_pool"] = MultiScaleRoIAlign(["0"], 4, 2)
            heads["mask_head"] = nn.Conv2d(32, 256, 3, padding=1)
            return MaskRCNN(Backbone(), box_predictor=predictor, mask_predictor=Masks(classes), **heads, **sizes)
        return FasterRCNN(Backbone(), box_predictor=predictor, **heads, **sizes)


def _lively(model: nn.Module) -> nn.Module:
    """Scores that differ: torchvision starts with all of them at 0.01."""
    head = model.head.classification_head
    for layer in head.conv:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    nn.init.normal_(head.cls_logits.weight, std=0.1)
    nn.init.constant_(head.cls_logits.bias, -1.5)
    if isinstance(model, FCOS):
        nn.init.constant_(model.head.regression_head.bbox_reg.bias, 1.5)  # boxes with an area
    return model


class Predictor(nn.Module):
    """Scores and box codes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(32, classes), nn.Linear(32, 4 * classes)

    def forward(self, x):
        """(N, 32) → (N, classes), (N, 4·classes)."""
        return 40.0 * self.cls_score(x), self.bbox_pred(x)


class Masks(nn.Sequential):
    """A mask of each class."""

    def __init__(self, classes: int) -> None:
        super().__init__(nn.ConvTranspose2d(256, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, classes, 1))
