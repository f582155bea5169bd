"""Training of the zoo's embedded detector, for ``qplug zoo train``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.instances import Instances
from qplug.training.supervised.optimize import rate_factor

BATCH = 8
LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.05
WARMUP = 0.05
LARGEST_GRADIENT = 5.0


def train_detector(
    model: nn.Module, scenes: Any, epochs: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Train a detector of torchvision's kind in place, by the losses that it returns in training mode.

    Scenes are mirrored at random. The model remains in eval mode.

    Args:
        model: takes a list of images (3, H, W) in 0 … 1 and a list of targets.
        scenes: examples with ``Instances`` that have masks.
        epochs: passes over them.
        progress: called with (finished epochs, all epochs).
    """
    pairs = [_target(*scenes[index]) for index in range(len(scenes))]
    steps = epochs * -(-len(pairs) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    model.train()
    step = 0
    for epoch in range(epochs):
        for chosen in torch.split(torch.randperm(len(pairs)), BATCH):
            batch = [_mirrored(*pairs[index], *torch.randint(2, (2,)).tolist()) for index in chosen.tolist()]
            losses = model([image for image, _ in batch], [target for _, target in batch])
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * rate_factor((step + 1) / (steps + 1), WARMUP, "cosine")
            optimizer.zero_grad()
            sum(losses.values()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            step += 1
        if progress is not None:
            progress(epoch + 1, epochs)
    model.eval()


def _target(image: Any, label: Instances) -> tuple[Tensor, dict[str, Tensor]]:
    """An image (3, H, W) in 0 … 1, and its objects as torchvision's detectors train on them."""
    import numpy as np
    from PIL import Image, ImageDraw

    masks = []
    for polygons in label.masks or ():
        mask = Image.new("L", (label.size[1], label.size[0]))
        for polygon in polygons:
            ImageDraw.Draw(mask).polygon(polygon, fill=1)
        masks.append(np.asarray(mask))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255.0
    target = {
        "boxes": torch.tensor(label.boxes),
        "labels": torch.tensor(label.classes),
        "masks": torch.from_numpy(np.stack(masks)),
    }
    return pixels, target


def _mirrored(image: Tensor, target: dict[str, Tensor], across: int, down: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The image and its objects, mirrored left to right and top to bottom."""
    boxes, masks = target["boxes"], target["masks"]
    for axis, turn in ((2, across), (1, down)):
        if turn:
            first, size = 2 - axis, image.shape[axis]
            image, masks = image.flip(axis), masks.flip(axis)
            boxes = boxes.clone()
            boxes[:, [first, first + 2]] = size - boxes[:, [first + 2, first]]
    return image, {"boxes": boxes, "labels": target["labels"], "masks": masks}
