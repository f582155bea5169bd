"""Model source ``detector``. Importing this module does not import torch."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from qplug.core.component import Config, ModelSource
from qplug.models.float_model import FloatModel
from qplug.models.sources import CHECKPOINT, seeded_weights

Side = Annotated[int, Field(ge=32, le=4096)]
LARGEST_COCO_ID = 90


class DetectorModel(ModelSource):
    """Mask R-CNN or Cascade Mask R-CNN on Swin, with a checkpoint of MMDetection or qplug, or with random weights."""

    class Config(Config):
        """``model: {source: detector, name: mask_rcnn_swin_t, checkpoint_path: mask_rcnn_swin_tiny.pth}``."""

        source: Literal["detector"]
        name: Literal[
            "mask_rcnn_swin_t",
            "mask_rcnn_swin_s",
            "cascade_mask_rcnn_swin_t",
            "cascade_mask_rcnn_swin_s",
            "cascade_mask_rcnn_swin_b",
        ] = Field(description="the detectors of Swin's authors, as docs/detectors.md describes them")
        checkpoint_path: str | None = Field(
            default=None, min_length=1, description=f"{CHECKPOINT}; with MMDetection's names, or qplug's"
        )
        classes: int = Field(default=80, ge=1, le=10000, description="number of classes, without the background")
        labels: Literal["coco", "counted"] = Field(
            default="coco", description="labels of detections: the ids of COCO's 80 categories, or counted from 1"
        )
        short: Side = Field(default=800, description="shorter side of the resized image, in pixels")
        long: Side = Field(default=1333, description="longer side that a resized image never exceeds, in pixels")

        @model_validator(mode="after")
        def _labels(self) -> DetectorModel.Config:
            if self.labels == "coco" and self.classes != 80:
                raise ValueError(f"COCO has 80 categories, and the model {self.classes}: set labels: counted")
            if self.short > self.long:
                raise ValueError(f"the shorter side, {self.short} pixels, exceeds the longer one, {self.long}")
            return self

    def load(self) -> FloatModel:
        """Build the model; raises ``InputError`` if its checkpoint is missing, damaged or does not fit."""
        from dataclasses import replace

        from qplug.core.task.detection import Detection
        from qplug.models.detector_interface import FLOAT_PARTS, settle_detector
        from qplug.models.detectors.build import ARCHITECTURES, build
        from qplug.models.detectors.checkpoint import load

        config, own = self.config, ARCHITECTURES[self.config.name]
        coco = config.labels == "coco"
        own = replace(own, classes=config.classes, ids=own.ids if coco else None, short=config.short, long=config.long)
        module = seeded_weights(lambda: build(own))
        note = "the weights are random (checkpoint_path is not given)"
        if config.checkpoint_path is not None:
            note = load(module, Path(config.checkpoint_path).expanduser(), config.name)
        prepared, task = settle_detector(module)
        largest = LARGEST_COCO_ID if coco else config.classes
        task = Detection(largest + 1, task.side, task.limit, background=True)
        return FloatModel.of(module, config.name, prepared, "; ".join(filter(None, (note, FLOAT_PARTS))), task=task)

    def key(self) -> dict[str, Any]:
        """The base key with the versions of timm and torchvision, whose parts the model has."""
        return super().key() | {name: importlib.metadata.version(name) for name in ("timm", "torchvision")}
