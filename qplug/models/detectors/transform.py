"""Resizing of images before a detector, and pasting of its masks behind it, in MMDetection's arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.transform import GeneralizedRCNNTransform, _resize_image_and_masks, resize_boxes

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Resize(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """Normalize, resize with the aspect ratio kept, and pad images; return boxes and masks to the original size.

    Differences from torchvision's: sizes are rounded to the nearest pixel, not down. Masks are sampled at the pixel
    centres of boxes with fractional corners; torchvision rounds corners to pixels first. Masks are probabilities, as
    torchvision's; MMDetection cuts them at 0.5. MMDetection resizes 8-bit images by OpenCV, whose bilinear filter
    rounds each pixel to 1/255.
    """

    def __init__(self, short: int, long: int) -> None:
        """The shorter side becomes ``short`` pixels, unless the longer one would exceed ``long``."""
        super().__init__(short, long, MEAN, STD, size_divisible=32)

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """image: (3, H, W) → (3, h, w)."""
        height, width = image.shape[-2:]
        factor = min(self.min_size[-1] / min(height, width), self.max_size / max(height, width))
        size = (int(width * factor + 0.5), int(height * factor + 0.5))
        if (width, height) == size:
            return image, target
        image, target = _resize_image_and_masks(image, 0, 0, target, size)
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], [height, width], list(image.shape[-2:]))
        return image, target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Boxes and masks in pixels of the original images; ``masks`` are (N, 1, H, W) probabilities."""
        if self.training:
            return result
        for one, resized, original in zip(result, image_shapes, original_image_sizes, strict=True):
            one["boxes"] = resize_boxes(one["boxes"], list(resized), list(original))
            one["masks"] = paste(one["masks"], one["boxes"], *original)
        return result


def paste(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """masks: (N, 1, h, w) probabilities within boxes (N, 4) → (N, 1, height, width), 0 outside.

    A box without area has an empty mask; MMDetection's has a strip, or the value of its centre.
    """
    pasted = masks.new_zeros(len(masks), 1, height, width)
    for out, mask, box in zip(pasted, masks, boxes.tolist(), strict=True):
        left, top, right, bottom = box
        x0, y0 = max(int(left) - 1, 0), max(int(top) - 1, 0)
        x1, y1 = min(int(right) + 2, width), min(int(bottom) + 2, height)
        if x1 <= x0 or y1 <= y0 or right <= left or bottom <= top:
            continue
        x, y = (torch.arange(*ends, dtype=masks.dtype, device=masks.device) + 0.5 for ends in ((x0, x1), (y0, y1)))
        x, y = (x - left) / (right - left) * 2 - 1, (y - top) / (bottom - top) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
        out[0, y0:y1, x0:x1] = F.grid_sample(mask[None], grid[None], align_corners=False)[0, 0]
    return pasted
