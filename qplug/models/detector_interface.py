"""torchvision's detectors behind the interface of every model: one tensor in, one tensor out, of fixed shapes.

A detector takes a list of images, resizes them, and works on as many regions as it finds. Here ``ImageList`` makes the
list from a canvas; images come resized, so that the batch is the canvas; and the regions of each image are filled up to
a fixed number by empty ones, which change no detection. Statistics, reconstruction and caches then see as many rows for
every image. Non-maximum suppression, RoIAlign and the decoding of boxes stay in float, as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qplug.core.errors import InputError
from qplug.core.task.detection import Detection
from qplug.models.image_inputs import DetectionPreprocessing

FLOAT_PARTS = "non-maximum suppression, RoIAlign and the decoding of boxes stay in float; no MACs are counted in them"
DIVISIBLE = 32
"""The canvas is a multiple of this many pixels, as torchvision pads to."""


@dataclass(frozen=True)
class ImageList:
    """Forward pre-hook of a model that takes a list of images: canvases (B, 3 or 4, H, W) as such a list.

    The fourth channel is positive where the image is (``DetectionPreprocessing.sizes``); it is cut off.
    """

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> Any:
        """The list of (3, h, w) as the only argument."""
        if not args or not isinstance(args[0], Tensor):
            return None
        batch = args[0]
        if batch.shape[1] == 3:
            return (list(batch),)
        there = batch[:, 3] > 0
        heights, widths = (there.any(axis).sum(1).tolist() for axis in (2, 1))
        return ([image[:3, :h, :w] for image, h, w in zip(batch, heights, widths, strict=True)],)


class FixedTransform(nn.Module):
    """A mixin of torchvision's ``GeneralizedRCNNTransform`` for images that come resized, on one canvas."""

    canvas: tuple[int, int]

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        """The image as it is."""
        return image, target

    def batch_images(self, images: list[Tensor], size_divisible: int = DIVISIBLE) -> Tensor:
        """(B, 3, H, W): each image at the top left of the canvas."""
        height, width = self.canvas
        return torch.stack([F.pad(one, (0, width - one.shape[2], 0, height - one.shape[1])) for one in images])

    def postprocess(self, result: list[dict[str, Tensor]], *_: Any) -> list[dict[str, Tensor]]:
        """Boxes in pixels of the canvas, and masks within the boxes."""
        return result


class FixedProposals(nn.Module):
    """A mixin of torchvision's ``RegionProposalNetwork`` with as many proposals for every image."""

    def filter_proposals(self, *args: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Boxes and scores, filled up by boxes without area and of score 0."""
        boxes, scores = super().filter_proposals(*args)  # type: ignore[misc]  # of the class it is mixed into
        count = int(self.post_nms_top_n())  # type: ignore[operator]  # likewise
        return [_filled(one, count) for one in boxes], [_filled(one, count) for one in scores]


class FixedHeads(nn.Module):
    """A mixin of torchvision's ``RoIHeads`` with as many detections for every image."""

    def postprocess_detections(
        self, class_logits: Tensor, box_regression: Tensor, proposals: list[Tensor], image_shapes: Any
    ) -> tuple[list[Tensor], ...]:
        """Boxes, scores and labels without those of empty proposals, filled up by detections of score 0."""
        regions = torch.cat(proposals)
        empty = (regions[:, 2] <= regions[:, 0]) | (regions[:, 3] <= regions[:, 1])
        background = torch.full_like(class_logits[:1], -100.0)
        background[:, 0] = 100.0
        logits = torch.where(empty[:, None], background, class_logits)
        found = super().postprocess_detections(logits, box_regression, proposals, image_shapes)  # type: ignore[misc]  # likewise
        limit = int(self.detections_per_img)  # type: ignore[arg-type]  # likewise
        return tuple([_filled(one, limit) for one in part] for part in found)


class FixedPool(nn.Module):
    """A mixin of torchvision's ``MultiScaleRoIAlign``, whose scales are those of the canvas.

    It infers them at its first forward from the sizes of features and images, and a canvas wider than the images would
    give others.
    """

    canvas: tuple[int, int]

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """The features of each box."""
        pooled: Tensor = super().forward(x, boxes, [self.canvas] * len(image_shapes))
        return pooled


def _filled(rows: Tensor, count: int) -> Tensor:
    missing = rows.new_zeros((max(0, count - len(rows)), *rows.shape[1:]))
    return torch.cat([rows[:count], missing])


def is_torchvision_detector(module: nn.Module) -> bool:
    """Whether ``module`` is a detector whose images torchvision's ``GeneralizedRCNNTransform`` prepares."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    return isinstance(getattr(module, "transform", None), GeneralizedRCNNTransform)


def settle_detector(module: Any, canvas: tuple[int, int] | None = None) -> tuple[DetectionPreprocessing, Detection]:
    """Give a detector of torchvision, or built from its parts, fixed shapes, in place.

    Args:
        module: with ``transform``, and ``rpn`` and ``roi_heads`` if it has two stages.
        canvas: height and width in pixels; the model's own largest size if ``None``.

    Returns:
        The preparation of its images, which resizes as the model did, within the canvas; and the task of its outputs.

    Raises:
        InputError: the canvas is no multiple of 32, or the model returns keypoints.
    """
    transform = module.transform
    preparation = _preparation(transform, canvas)
    heads = getattr(module, "roi_heads", None)
    if heads is not None and heads.has_keypoint():
        raise InputError("expected a detector of boxes or masks, received one of keypoints", where="model")
    _swap(transform, FixedTransform)
    transform.canvas = preparation.input_size[1:]
    if heads is not None:
        _swap(module.rpn, FixedProposals)
        _swap(heads, FixedHeads)
        for pool in _pools(heads):
            _swap(pool, FixedPool)
            pool.canvas, pool.scales, pool.map_levels = transform.canvas, None, None
    module.register_forward_pre_hook(ImageList())
    with_masks = heads is not None and heads.has_mask()
    limit = int((heads if heads is not None else module).detections_per_img)
    return preparation, Detection(_classes(module), _mask_side(heads) if with_masks else 0, limit, background=True)


def remove_detector_interface(module: nn.Module) -> None:
    """Undo ``settle_detector`` in place: the detector takes a list of images of any size again."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, ImageList):
            del module._forward_pre_hooks[key]
    heads = getattr(module, "roi_heads", None)
    for part in (getattr(module, "transform", None), getattr(module, "rpn", None), heads, *_pools(heads)):
        if isinstance(part, FixedPool):
            part.scales, part.map_levels = None, None  # type: ignore[assignment]  # as torchvision begins
        if isinstance(part, (FixedTransform, FixedProposals, FixedHeads, FixedPool)):
            part.__class__ = type(part).__bases__[1]


def _pools(heads: Any) -> list[Any]:
    """The parts that cut regions out of the features, which torchvision infers the scales of."""
    from torchvision.ops import MultiScaleRoIAlign

    pools = [getattr(heads, name, None) for name in ("box_roi_pool", "mask_roi_pool")]
    return [pool for pool in pools if isinstance(pool, MultiScaleRoIAlign)]


def canvas_of(module: nn.Module, sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The smallest canvas that holds images of these heights and widths as the detector resizes them."""
    own = _preparation(module.transform, None)
    if own.resize == "stretch":
        return own.input_size[1], own.input_size[2]
    resized = [own.resized(size) for size in sizes]
    height, width = (math.ceil(max(side) / DIVISIBLE) * DIVISIBLE for side in zip(*resized, strict=True))
    return height, width


def _preparation(transform: Any, canvas: tuple[int, int] | None) -> DetectionPreprocessing:
    fixed = getattr(transform, "fixed_size", None)
    if fixed is not None:  # SSD's, (width, height)
        return DetectionPreprocessing((3, *(canvas or (fixed[1], fixed[0]))), resize="stretch")
    side = math.ceil(transform.max_size / DIVISIBLE) * DIVISIBLE
    height, width = canvas or (side, side)
    if height % DIVISIBLE or width % DIVISIBLE:
        what = f"expected a canvas of multiples of {DIVISIBLE} pixels, received {height} × {width}"
        raise InputError(what, where="model.preprocessing.input_size", fix="set [3, 640, 640], for example")
    return DetectionPreprocessing((3, height, width), resize="fit", short=transform.min_size[-1], sizes=True)


def _swap(module: Any, mixin: type[nn.Module]) -> None:
    """Give ``module`` the methods of ``mixin``, before those of its own class."""
    own = type(module)
    if not issubclass(own, mixin):
        module.__class__ = type(f"{mixin.__name__}{own.__name__}", (mixin, own), {"__module__": __name__})


def _classes(module: Any) -> int | None:
    """The number of classes with the background, if the head tells it."""
    heads, head = getattr(module, "roi_heads", None), getattr(module, "head", None)
    predictor: Any = getattr(heads, "box_predictor", None)
    if isinstance(predictor, nn.ModuleList):
        predictor = predictor[0]
    if predictor is not None and hasattr(predictor, "cls_score"):
        return int(predictor.cls_score.out_features)
    count = getattr(getattr(head, "classification_head", None), "num_classes", None)
    return int(count) if count is not None else None


def _mask_side(heads: Any) -> int:
    """Rows and columns of a mask: a transposed convolution doubles those of the pooled region."""
    size = getattr(heads.mask_roi_pool, "output_size", None) or heads.mask_roi_pool.size
    return 2 * int(size[0] if isinstance(size, (tuple, list)) else size)
