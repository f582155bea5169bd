"""Anchors, box codes and pooling of regions, where MMDetection's arithmetic differs from torchvision's."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

STRIDES = (4, 8, 16, 32, 64)
"""Pixels of the image for a step in each level of the pyramid."""
RATIOS = (0.5, 1.0, 2.0)
"""Heights of anchors as multiples of their widths."""
FINEST = 56.0
"""Regions are read from the finest level up to twice this √area in pixels, and from the next up to four times."""


class Anchors(AnchorGenerator):  # type: ignore[misc]  # torchvision has no types
    """Anchors of ``scale``·stride pixels, three for each position, centred at multiples of the stride.

    torchvision rounds their corners to pixels, and infers strides from the padded image. Here corners are not rounded,
    and strides are the nominal ones: a last map of 13 rows for 800 pixels has stride 64, not 61.
    """

    def __init__(self, scale: float = 8.0) -> None:
        """``scale``: √area of the anchors, in strides."""
        super().__init__(tuple((scale * stride,) for stride in STRIDES), (RATIOS,) * len(STRIDES))

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """(ratios, 4): corners around 0."""
        (size,) = scales
        corners = [
            (-size / sqrt(r) / 2, -size * sqrt(r) / 2, size / sqrt(r) / 2, size * sqrt(r) / 2) for r in aspect_ratios
        ]
        return torch.tensor(corners, dtype=dtype, device=device)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """(positions of all levels · 3, 4) for each image."""
        like = feature_maps[0]
        strides = [[torch.tensor(stride, device=like.device)] * 2 for stride in STRIDES[: len(feature_maps)]]
        self.set_cell_anchors(like.dtype, like.device)
        levels = self.grid_anchors([list(maps.shape[-2:]) for maps in feature_maps], strides)
        return [torch.cat(levels) for _ in image_list.image_sizes]


class Coder(BoxCoder):  # type: ignore[misc]  # torchvision has no types
    """Box codes whose logarithms of sizes are limited on both sides, to ±log(1000/16); torchvision limits large ones.

    ``weights`` are the reciprocals of MMDetection's standard deviations.
    """

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """rel_codes: (N, 4·classes), boxes: (N, 4) → (N, 4·classes) corners."""
        codes = rel_codes.reshape(len(rel_codes), -1, 4)
        least = codes.new_tensor([-torch.inf, -torch.inf, *(-self.bbox_xform_clip * w for w in self.weights[2:])])
        decoded: Tensor = super().decode_single(codes.maximum(least).flatten(1), boxes)
        return decoded


class RegionPool(nn.Module):
    """RoIAlign of every region from the level that fits its size.

    torchvision's ``MultiScaleRoIAlign`` has corners half a pixel off (``aligned=False``) and two samples for each bin.
    Here corners are exact, and every bin has as many samples as it has pixels.
    """

    def __init__(self, size: int) -> None:
        """``size``: rows and columns of the result."""
        super().__init__()
        self.size = size

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], image_shapes: object = None) -> Tensor:
        """maps: (B, C, h, w) of each level; boxes: (N, 4) of each image → (ΣN, C, size, size)."""
        levels = list(maps.values())[:4]
        regions = torch.cat(boxes)
        images = torch.cat([one.new_full((len(one), 1), index) for index, one in enumerate(boxes)])
        width, height = (regions[:, 2:] - regions[:, :2]).unbind(1)
        fitting = torch.log2((width * height).sqrt() / FINEST + 1e-6).floor().clamp(0, len(levels) - 1)
        pooled = levels[0].new_zeros(len(regions), levels[0].shape[1], self.size, self.size)
        for index, (level, stride) in enumerate(zip(levels, STRIDES, strict=False)):
            places = (fitting == index).nonzero()[:, 0]
            if len(places):
                rows = torch.cat([images[places], regions[places]], 1)
                found = roi_align(level, rows, self.size, 1 / stride, sampling_ratio=0, aligned=True)
                pooled = pooled.index_copy(0, places, found)
        return pooled

    def extra_repr(self) -> str:
        """The size."""
        return f"size={self.size}"
