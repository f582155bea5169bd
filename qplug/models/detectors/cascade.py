"""The heads of Cascade R-CNN: three stages, each on the boxes of the one before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import maskrcnn_inference
from torchvision.ops import clip_boxes_to_image

from qplug.core.errors import InputError
from qplug.models.detectors.boxes import Coder
from qplug.models.detectors.heads import Heads

WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (1 / 0.033, 1 / 0.033, 1 / 0.067, 1 / 0.067))
"""Weights of box codes by stage: reciprocals of the standard deviations of Cascade R-CNN."""


class CascadeHeads(Heads):
    """``Heads`` with lists of heads, one for each of three stages; inference only.

    A region's scores are the mean of the logits of all stages; its boxes are those of the last. A stage without
    class-agnostic boxes passes on those of its most likely class. Masks are the mean of the stages' probabilities.
    """

    def __init__(self, heads: Callable[[], tuple[nn.Module, ...]], **settings: Any) -> None:
        """``heads()`` makes a stage's box head, box predictor, mask head and mask predictor."""
        parts = list(zip(*(heads() for _ in WEIGHTS), strict=True))
        boxes, predictors, masks, mask_predictors = (nn.ModuleList(part) for part in parts)
        names = {"box_head": boxes, "box_predictor": predictors, "mask_head": masks, "mask_predictor": mask_predictors}
        super().__init__(WEIGHTS[-1], **names, **settings)
        self.coders = [Coder(weights) for weights in WEIGHTS]

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Any = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each image: boxes, labels, scores and masks; no losses.

        Raises:
            InputError: in training mode.
        """
        if self.training:
            raise InputError(
                "Cascade Mask R-CNN is in training mode, and has losses for inference only: none",
                fix="call eval(), or train a Mask R-CNN",
            )
        scores, codes, regions = self._refine(features, proposals, image_shapes)
        found = zip(*self.postprocess_detections(scores, codes, regions, image_shapes), strict=True)
        result = [dict(zip(("boxes", "scores", "labels"), one, strict=True)) for one in found]
        labels = [one["labels"] for one in result]
        pooled = self.mask_roi_pool(features, [one["boxes"] for one in result], image_shapes)
        stages = [
            maskrcnn_inference(predict(head(pooled)), labels)
            for head, predict in zip(self.mask_head, self.mask_predictor, strict=True)
        ]
        for one, masks in zip(result, zip(*stages, strict=True), strict=True):
            one["masks"] = torch.stack(masks).mean(0)
        return result, {}

    def _refine(
        self, features: dict[str, Tensor], regions: list[Tensor], shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Mean scores (ΣN, 1 + classes), codes of the last stage, and the regions (N, 4) that these refer to."""
        all_scores, codes = [], regions[0]
        for stage, (head, predict) in enumerate(zip(self.box_head, self.box_predictor, strict=True)):
            scores, codes = predict(head(self.box_roi_pool(features, regions, shapes)))
            all_scores.append(scores)
            if stage < len(WEIGHTS) - 1:
                best = scores[:, 1:].argmax(1) + 1
                own = codes.reshape(len(best), -1, 4)[torch.arange(len(best), device=best.device), best]
                boxes = self.coders[stage].decode_single(own, torch.cat(regions))
                sizes = [len(one) for one in regions]
                regions = [
                    clip_boxes_to_image(one, shape)
                    for one, shape in zip(boxes.split_with_sizes(sizes), shapes, strict=True)
                ]
        return torch.stack(all_scores).mean(0), codes, regions
