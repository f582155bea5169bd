"""FastestDet as a third party would bring it: a plugin with a model source and a task, and no change of qplug.

The detector is one-stage and free of anchors, on a ShuffleNetV2 (Ma Xuehao, FastestDet, BSD-3-Clause). Its weights are
read from a file that the recipe names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qplug
from qplug import hookimpl
from qplug.core.task.detection import DenseDetection
from qplug.core.task.detection_rows import suppressed
from qplug.models.image_inputs import DetectionPreprocessing

CLASSES, SIDE = 80, 352


class FastestDetBoxes(DenseDetection):
    """Outputs (B, 85, h, w): objectness, four box values, and the shares of 80 classes, at each position."""

    name = "fastestdet_boxes"
    outputs = "(B, 85, 22, 22)"

    def __init__(self) -> None:
        super().__init__(classes=CLASSES)

    def accepts(self, outputs: Tensor) -> bool:
        """A map of 85 channels."""
        return outputs.dim() == 4 and outputs.shape[1] == 5 + CLASSES

    def candidates(self, outputs: Tensor) -> Tensor:
        """(B, h·w, 6): one box at each position, of its most likely class."""
        height, width = outputs.shape[-2:]
        y, x = torch.meshgrid(*(torch.arange(n).to(outputs) for n in (height, width)), indexing="ij")
        share, kind = outputs[:, 5:].max(1)
        scores = outputs[:, 0].clamp_min(1e-8) ** 0.6 * share.clamp_min(1e-8) ** 0.4
        centre_x, centre_y = (outputs[:, 1].tanh() + x) / width, (outputs[:, 2].tanh() + y) / height
        wide, high = outputs[:, 3].sigmoid() / 2, outputs[:, 4].sigmoid() / 2
        box = [centre_x - wide, centre_y - high, centre_x + wide, centre_y + high]
        return torch.stack([*(side * SIDE for side in box), scores, kind.to(scores)], -1).flatten(1, 2)

    def detections(self, outputs: Tensor) -> Tensor:
        """At most 100, by suppression at an IoU of 0.45; scores above 0.001."""
        return suppressed(self.candidates(outputs), 0.45, 0.001, self.limit)


def conv(inputs: int, outputs: int, size: int, stride: int = 1, depthwise: bool = False, relu: bool = True) -> list:
    """A convolution, its BatchNorm, and a ReLU."""
    groups = inputs if depthwise else 1
    layers = [nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return [*layers, *([nn.ReLU()] if relu else [])]


class Shuffle(nn.Module):
    """ShuffleNetV2's block: half of the channels stay, the others pass the main branch."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner, stay = outputs // 2, inputs if stride == 2 else 0
        own = inputs if stride == 2 else inputs // 2
        self.branch_main = nn.Sequential(
            *conv(own, inner, 1), *conv(inner, inner, 3, stride, True, relu=False), *conv(inner, outputs - own, 1)
        )
        self.branch_proj = None
        if stay:
            self.branch_proj = nn.Sequential(*conv(stay, stay, 3, stride, True, relu=False), *conv(stay, stay, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H/stride, W/stride)."""
        if self.branch_proj is not None:
            return torch.cat([self.branch_proj(x), self.branch_main(x)], 1)
        return torch.cat([x[:, 0::2], self.branch_main(x[:, 1::2])], 1)


class Backbone(nn.Module):
    """ShuffleNetV2 with stages of 4, 8 and 4 blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(*conv(3, 24, 3, 2))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stage2, self.stage3, self.stage4 = (
            nn.Sequential(Shuffle(i, o, 2), *(Shuffle(o, o, 1) for _ in range(n - 1)))
            for i, o, n in ((24, 48, 4), (48, 96, 8), (96, 192, 4))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The maps of strides 8, 16 and 32."""
        p2 = self.stage2(self.maxpool(self.first_conv(x)))
        p3 = self.stage3(p2)
        return p2, p3, self.stage4(p3)


class Point(nn.Module):
    """A 1×1 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Sequential(*conv(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """As a convolution."""
        return self.conv1x1(x)


class Head(nn.Module):
    """A depthwise 5×5 and a 1×1 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv5x5 = nn.Sequential(*conv(inputs, inputs, 5, 1, True), *conv(inputs, outputs, 1, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        """As a convolution."""
        return self.conv5x5(x)


class Pyramid(nn.Module):
    """SPP: one, two and three depthwise 5×5 convolutions side by side."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.Conv1x1 = Point(inputs, width)
        self.S1, self.S2, self.S3 = (
            nn.Sequential(*(layer for _ in range(n) for layer in conv(width, width, 5, 1, True))) for n in (1, 2, 3)
        )
        self.output = nn.Sequential(*conv(3 * width, width, 1, relu=False))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, width, H, W)."""
        x = self.Conv1x1(x)
        return self.relu(x + self.output(torch.cat([self.S1(x), self.S2(x), self.S3(x)], 1)))


class Heads(nn.Module):
    """Objectness, box values and classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1x1 = Point(width, width)
        self.obj_layers, self.reg_layers, self.cls_layers = Head(width, 1), Head(width, 4), Head(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 85, H, W)."""
        x = self.conv1x1(x)
        return torch.cat([self.obj_layers(x).sigmoid(), self.reg_layers(x), self.cls_layers(x).softmax(1)], 1)


class FastestDet(nn.Module):
    """The detector; every key of the state dict names its module."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.SPP, self.detect_head = Backbone(), Pyramid(336, 96), Heads(96)
        self.pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 352, 352) BGR in 0 … 1 → (B, 85, 22, 22)."""
        p2, p3, p4 = self.backbone(x)
        p4 = F.interpolate(p4, scale_factor=2, mode="nearest")
        return self.detect_head(self.SPP(torch.cat([self.pool(p2), p3, p4], 1)))


class Fastest(qplug.ModelSource):
    """FastestDet with weights from a file."""

    class Config(qplug.Config):
        """``model: {source: fastestdet, checkpoint_path: …}``."""

        source: Literal["fastestdet"]
        checkpoint_path: str | None = None

    def load(self) -> qplug.FloatModel:
        """The model; random weights without a file."""
        from safetensors.torch import load_file

        model, path = FastestDet(), self.config.checkpoint_path
        if path is not None:
            model.load_state_dict(load_file(Path(path)))
        preparation = DetectionPreprocessing((3, SIDE, SIDE), resize="stretch", order="BGR", antialias=True)
        return qplug.FloatModel.of(model, "FastestDet", preparation, task_name=FastestDetBoxes.name)


@hookimpl
def qplug_models() -> list[type[qplug.ModelSource]]:
    """The detector."""
    return [Fastest]


@hookimpl
def qplug_tasks() -> dict[str, str]:
    """Its decoder."""
    return {FastestDetBoxes.name: "fastestdet:FastestDetBoxes"}


@hookimpl
def qplug_blocks() -> list[str]:
    """What is reconstructed as a whole."""
    return [f"fastestdet:{name}" for name in ("Shuffle", "Pyramid", "Head")]
