"""The preparation of images by a model's own image processor of transformers. Importing it does not import torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplug.core.errors import InputError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

FILE = "preprocessor_config.json"
PROBES = ((64, 48), (48, 64))
"""Widths and heights of two images that must become inputs of the same size."""


@dataclass(frozen=True)
class ImageProcessor:
    """``qplug.data.preparation.Preparation`` by transformers' image processor, exactly as the model's authors set it.

    Attributes:
        settings: the processor's ``preprocessor_config.json``.
        version: of transformers, whose code computes the inputs.
    """

    settings: str
    version: str

    @classmethod
    def of(cls, folder: Path, where: str) -> ImageProcessor:
        """The processor of a model's folder.

        Raises:
            InputError: there is none, it cannot be read, or its inputs do not have one size for all images.
        """
        import importlib.metadata

        from transformers import AutoImageProcessor

        fix = "save the model's processor there (processor.save_pretrained), or set model.preprocessing"
        if not (folder / FILE).is_file():
            raise InputError(f"the folder has no {FILE}, so the preparation of images is unknown", where=where, fix=fix)
        try:
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # invalid JSON and unknown processors raise different types
            what = f"{FILE} cannot be read: {' '.join(str(error).split())[:300]}"
            raise InputError(what, where=where, fix=fix) from error
        found = cls(processor.to_json_string(), importlib.metadata.version("transformers"))
        shapes = {found._shape(size) for size in PROBES}
        if len(shapes) > 1:
            raise InputError(
                f"the processor gives images of several sizes, such as {' and '.join(map(str, sorted(shapes)))}",
                where=where,
                fix="set one size in its configuration, as do_center_crop does, or set model.preprocessing",
            )
        return found

    @property
    def whole_image(self) -> bool:
        """Whether the input shows the whole image and nothing else: no crop and no padding."""
        values = json.loads(self.settings)
        size = values.get("size") or {}
        squashed = not values.get("do_resize", True) or {"height", "width"} <= size.keys()
        return squashed and not values.get("do_center_crop") and not values.get("do_pad")

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """A function from a PIL image of any mode to (3, H, W) float32."""
        processor = self._processor

        def apply(image: Image.Image) -> Tensor:
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")  # PIL warns about a direct conversion
            tensor: Tensor = processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
            return tensor

        return apply

    def example(self) -> Tensor:
        """A random image (1, 3, H, W) float32."""
        import torch

        return torch.randn((1, *self._shape(PROBES[0])), generator=torch.Generator().manual_seed(0))

    @cached_property
    def _processor(self) -> Any:
        import transformers

        values = json.loads(self.settings)
        return getattr(transformers, values["image_processor_type"]).from_dict(values)

    def _shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        from PIL import Image

        return tuple(self.transform()(Image.new("RGB", size)).shape)
