"""Small detectors on Swin, and weights that depend on nothing but the names of tensors."""

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

SWIN = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4), "window_size": 7}
KINDS = {
    "mask_rcnn": {},
    "cascade_agnostic": {"cascade": True, "agnostic": True},
    "cascade_convolutional": {"cascade": True, "convolutions": 4},
}
"""Name in ``mmdetection.json`` → arguments of ``Architecture``."""
SIZES = {"classes": 3, "channels": 16, "hidden": 32, "short": 100, "long": 150, "proposals": 120}
IMAGES = ((77, 121), (90, 64))
"""Heights and widths of the two images; neither is a multiple of anything."""


def small(kind="mask_rcnn", **others):
    """The architecture of one of ``KINDS``."""
    from qplug.models.detectors.build import Architecture

    return Architecture(**{**SIZES, "overrides": SWIN, **KINDS[kind], **others})


def images() -> list[Tensor]:
    """Two images (3, H, W) float64 in 0 … 1."""
    return [torch.from_numpy(np.random.RandomState(height).rand(3, height, width)) for height, width in IMAGES]


def weights(shapes: Mapping[str, tuple[int, ...]], salt: str = "") -> dict[str, Tensor]:
    """float64 values for tensors with MMDetection's names, of a size that lets signals pass."""
    return {name: torch.from_numpy(_values(name, tuple(shape), salt)) for name, shape in shapes.items()}


def _values(name: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    random = np.random.RandomState(zlib.crc32((salt + name).encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    if name.endswith("running_var"):
        return random.uniform(0.5, 2.0, shape)
    values = random.standard_normal(shape)
    if "relative_position_bias" in name:
        return values
    if "norm" in name or ".bn." in name:
        return 0.3 * values + (1.0 if name.endswith("weight") else 0.0)
    if name.endswith("bias"):
        return 0.1 * values + 2.0 * (np.arange(len(values)) == len(values) - 1) * ("fc_cls" in name)  # few detections
    return values * (0.4 if "_reg" in name else 0.7 if "fc_cls" in name else 1.2) / np.prod(shape[1:]) ** 0.5
