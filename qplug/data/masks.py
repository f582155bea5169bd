"""Data source of images with label maps: a folder of images, and a folder of masks with the same names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from qplug.core.component import Config, DataSource
from qplug.core.errors import InputError
from qplug.core.storage.hashing import file_digest
from qplug.core.storage.plain_file import refuse_special, require_file
from qplug.core.text import listed
from qplug.data.class_folders import FolderTree, Parts, read_tree
from qplug.data.image_files import decode
from qplug.data.loading import IMAGES, choose

if TYPE_CHECKING:
    from PIL import Image

    from qplug.core.task.label_map import LabelMap

MODES = ("L", "P", "1")
"""PIL's modes of images whose values are classes: grey, palette (as VOC's), and black and white."""


class Masks(DataSource):
    """Images with a class for every pixel: ``<path>/…/<name>.jpg`` and ``<masks>/…/<name>.png``.

    A mask is a PNG of the image's size whose values are classes, and 255 where a pixel is not judged. In PNGs with a
    palette, as VOC's, the values are the indices. Without ``masks``, images have no labels, which suffices for
    calibration.
    """

    class Config(Config):
        """``data.*: {source: masks, path: …/images/val, masks: …/masks/val}``."""

        source: Literal["masks"]
        path: str = Field(min_length=1, description="the folder of images, which may have folders in it")
        masks: str | None = Field(
            default=None, min_length=1, description="the folder of PNG masks, with the images' folders and names"
        )
        reduce_labels: bool = Field(
            default=False, description="whether 0 in the files is no class and 1 is class 0, as in ADE20K's files"
        )
        images: int | None = Field(default=None, ge=1, description=IMAGES)

    def open(self, seed: int) -> MaskedImages:
        """List and draw the images; raises ``InputError`` for an invalid folder, or images without a mask."""
        config = self.config
        tree = _tree(config.path)
        paths = sorted([*tree.images, *tree.loose])
        if not paths:
            raise InputError("no image is in the folder", where=str(tree.root), fix="set path to the folder of images")
        masks = None if config.masks is None else _folder(config.masks, "masks")
        if masks is not None:
            missing = ["/".join(parts) for parts in paths if not _mask(masks, parts).is_file()]
            if missing:
                raise InputError(
                    f"{len(missing)} of {len(paths)} images have no mask of the same name: {listed(missing, 3)}",
                    where=str(masks),
                    fix=f"add {_mask(Path(), tuple(missing[0].split('/')))}, or remove the image",
                )
        chosen = choose(len(paths), config.images, seed, str(tree.root))
        return MaskedImages(tree.root, [paths[index] for index in chosen], masks, config.reduce_labels)


class MaskedImages:
    """``Examples`` over images and masks; holds paths, no pixels."""

    def __init__(self, root: Path, items: Sequence[Parts], masks: Path | None, reduce_labels: bool) -> None:
        self._root, self._items, self._masks, self._reduce = root, items, masks, reduce_labels

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Image.Image, LabelMap | None]:
        path = self._root.joinpath(*self._items[index])
        image = decode(path, str(path))
        return image, None if self._masks is None else self._map(index, image.size)

    def label(self, index: int) -> LabelMap:
        """The label map; raises ``InputError`` if there is none, or if it does not belong to the image."""
        from PIL import Image

        path = self._root.joinpath(*self._items[index])
        require_file(path, "image")
        try:
            with Image.open(path) as image:  # the header alone
                size = image.size
        except Exception:  # decoding says what is wrong
            size = decode(path, str(path)).size
        return self._map(index, size)

    def key(self, index: int) -> str:
        """The image's path."""
        return str(self._root.joinpath(*self._items[index]))

    def size_hint(self, index: int) -> int:
        """Size of the image's file in bytes."""
        return require_file(self._root.joinpath(*self._items[index]), "image").st_size

    def digest(self, index: int) -> str:
        """SHA-256 of the image's file."""
        return file_digest(self._root.joinpath(*self._items[index]))

    def _map(self, index: int, size: tuple[int, int]) -> LabelMap:
        """The label map of an image of ``size`` (W, H)."""
        import numpy as np
        import torch

        from qplug.core.task.label_map import IGNORE, LabelMap

        if self._masks is None:
            what, fix = (
                "the image has no label map",
                "set masks to the folder of label maps; only calibration needs none",
            )
            raise InputError(what, where=self.key(index), fix=fix)
        path = _mask(self._masks, self._items[index])
        mask = decode(path, str(path))
        if mask.mode not in MODES:
            raise InputError(
                f"the mask holds colors (PIL mode {mask.mode}), not classes",
                where=str(path),
                fix="save it with one channel of 8 bits, or with a palette, whose values are classes",
            )
        if mask.size != size:
            raise InputError(
                f"the mask has {mask.size[0]}×{mask.size[1]} pixels, and its image {size[0]}×{size[1]}",
                where=str(path),
                fix="save the mask in the size of its image, resized by nearest neighbours",
            )
        values = torch.from_numpy(np.array(mask, dtype=np.uint8))
        if self._reduce:
            none = (values == 0) | (values == IGNORE)
            values = torch.where(none, IGNORE, values - 1).to(torch.uint8)
        if bool((values == IGNORE).all()):
            what = f"every pixel of the mask is {IGNORE}{' or 0' if self._reduce else ''}: none is judged"
            raise InputError(what, where=str(path), fix="correct the mask, or remove the image")
        return LabelMap(values)


def _mask(masks: Path, parts: Parts) -> Path:
    return masks.joinpath(*parts).with_suffix(".png")


def _folder(path: str, noun: str) -> Path:
    root = Path(path).expanduser()
    refuse_special(root, "folder")
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else f"the folder of {noun} does not exist"
        raise InputError(what, where=str(root))
    return root


def _tree(path: str) -> FolderTree:
    return read_tree(_folder(path, "images"))
