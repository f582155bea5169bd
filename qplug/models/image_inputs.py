"""Preparation of images whose objects have places: detection. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qplug.core.examples import Label
from qplug.core.instances import Instances

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Size = tuple[int, int]


@dataclass(frozen=True)
class DetectionPreprocessing:
    """Conversion of an image to the input of a detector, on one canvas for all images.

    Images of several sizes become one batch in this way, and every tensor of the model has the same shape for every
    image, so that statistics, reconstruction and caches need not know of sizes.

    Attributes:
        input_size: (3, H, W), the canvas in pixels.
        mean, std: subtracted from each channel after scaling to [0, 1], and its divisor after that.
        resize: ``stretch`` fills the canvas. ``fit`` keeps the proportions, puts the image at the top left and fills
            the rest with 0 (after normalization).
        short: with ``fit``, the shorter side in pixels, unless the image would then exceed the canvas; ``None`` makes
            the image as large as the canvas allows.
        order: of the channels, ``RGB`` or ``BGR``.
        antialias: whether the bilinear filter widens for smaller images, as PIL's does; torchvision's detectors and
            OpenCV do not.
        sizes: whether a fourth channel marks the pixels of the image by 1, for models that take a list of images:
            ``ImageList`` makes such a list.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resize: Literal["stretch", "fit"] = "fit"
    short: int | None = None
    order: Literal["RGB", "BGR"] = "RGB"
    antialias: bool = False
    sizes: bool = False

    def transform(self) -> DetectionTransform:
        """A function from a PIL image, or a tensor (3, H, W) in 0 … 1, to (3 or 4, H, W) float32."""
        return DetectionTransform(self)

    def example(self) -> Tensor:
        """A random image (1, 3 or 4, H, W) that fills the canvas."""
        import torch

        image = torch.randn((1, *self.input_size), generator=torch.Generator().manual_seed(0))
        return torch.cat([image, torch.ones_like(image[:, :1])], 1) if self.sizes else image

    def resized(self, size: Size) -> Size:
        """Height and width on the canvas of an image of ``size`` (height, width), as torchvision rounds them."""
        _, height, width = self.input_size
        if self.resize == "stretch":
            return height, width
        factor = min(height / size[0], width / size[1])
        if self.short is not None:
            factor = min(factor, self.short / min(size))
        return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))


@dataclass(frozen=True)
class DetectionTransform:
    """What ``DetectionPreprocessing`` does with an image, and with its objects."""

    of: DetectionPreprocessing

    def __call__(self, item: Any) -> torch.Tensor:
        """(3 or 4, H, W) float32, resized by a bilinear filter."""
        import torch
        from torch.nn import functional as F

        height, width = self.of.resized(_size(item))
        if self.of.antialias and not isinstance(item, torch.Tensor):
            item = item.convert("RGB").resize((width, height), 2)  # PIL's bilinear filter, which works on 8 bits
        image = _tensor(item)
        if (height, width) != tuple(image.shape[1:]):
            image = F.interpolate(
                image[None], (height, width), mode="bilinear", align_corners=False, antialias=self.of.antialias
            )[0]
        image = image.flip(0) if self.of.order == "BGR" else image
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.of.mean, self.of.std))
        image = (image - mean) / std
        if self.of.sizes:
            image = torch.cat([image, torch.ones_like(image[:1])])
        return F.pad(image, (0, self.of.input_size[2] - width, 0, self.of.input_size[1] - height))

    def label(self, item: Any, label: Label) -> Label:
        """The objects with the scale of their image on the canvas."""
        if not isinstance(label, Instances):
            return label
        size = _size(item)
        height, width = self.of.resized(size)
        return label.scaled(width / size[1], height / size[0])

    def losses(self) -> list[str]:
        """Nothing of an image is left out."""
        return []


def _size(item: Any) -> Size:
    return (int(item.shape[1]), int(item.shape[2])) if hasattr(item, "shape") else (item.height, item.width)


def _tensor(item: Any) -> torch.Tensor:
    """(3, H, W) float32 in 0 … 1, RGB."""
    import numpy as np
    import torch

    if isinstance(item, torch.Tensor):
        return item.float()
    return torch.from_numpy(np.array(item.convert("RGB"))).permute(2, 0, 1).float() / 255.0
