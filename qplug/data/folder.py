"""Data source of images in one folder per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from qplug.core.component import Config, DataSource
from qplug.core.errors import InputError
from qplug.core.examples import Classes
from qplug.core.storage.hashing import file_digest
from qplug.core.storage.plain_file import refuse_special, require_file
from qplug.core.text import listed
from qplug.data.class_folders import FolderTree, Parts, inner_folders, read_tree
from qplug.data.class_map import IMAGENET, class_map
from qplug.data.image_files import decode, suffixes
from qplug.data.loading import IMAGES, choose

if TYPE_CHECKING:
    from PIL import Image

SPLITS = frozenset(
    {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval", "evaluation", "calib"}
)
"""Names of folders that hold parts of a data set and are no classes, in lower case."""


class Folder(DataSource):
    """Images in class folders, with ImageNet's layout ``<path>/<class>/…/<image>``.

    ``class_map`` defines the labels. It is a text file as in timm: one class per line, whose label is the line's index
    from 0, or ``<class> <label>`` on each line. ``imagenet`` is the class map of ImageNet-1k. Without a class map, the
    labels follow timm's order of the folders' names: ``2`` before ``10``, without case. A class folder without images
    has a label too, unlike in timm.

    Hidden folders and those that systems make (``@eaDir``, ``__MACOSX``) are passed over. Images without class folders,
    directly in ``path``, have no labels, which suffices for calibration.
    """

    class Config(Config):
        """``data.*: {source: folder, path: …/val, class_map: …/class_map.txt}``."""

        source: Literal["folder"]
        path: str = Field(min_length=1, description="the folder that holds the class folders")
        class_map: str | None = Field(
            default=None,
            min_length=1,
            description="text file of class folder names, where a label is the line's index; or imagenet",
        )
        images: int | None = Field(default=None, ge=1, description=IMAGES)

    def open(self, seed: int) -> FolderImages:
        """List and draw the images; raises ``InputError`` for an invalid path, class map or number."""
        root = Path(self.config.path).expanduser()
        refuse_special(root, "folder")
        if not root.is_dir():
            raise InputError(
                "is a file, not a folder" if root.exists() else "the folder does not exist", where=str(root)
            )
        tree = read_tree(root)
        paths = tree.images or tree.loose
        if not paths:
            left = "".join(f"\n  {note}" for note in tree.notes())
            common = ", ".join(sorted(suffixes() & {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}))
            raise InputError(
                f"no class folder in it holds an image ({common}, …){left}",
                where=str(root),
                fix="store the images as <path>/<class>/<image>; hidden folders are passed over",
            )
        classes = self._classes(tree) if tree.images else None
        chosen = choose(len(paths), self.config.images, seed, str(root))
        return FolderImages(root, [paths[index] for index in chosen], classes, tree.notes())

    def _classes(self, tree: FolderTree) -> Classes:
        if self.config.class_map is not None:
            return _mapped(tree, self.config.class_map)
        inner = inner_folders(tree)
        if len(inner) == len(tree.classes) and SPLITS.issuperset(map(str.lower, tree.classes)):
            likely = next((path for path in inner if path.name.startswith("val")), min(inner))
            raise InputError(
                f"its folders are parts of a data set, not classes: {listed(tree.classes)}",
                where=str(tree.root),
                fix=f"set path to one of them, such as {likely}",
            )
        labels = {name: label for label, name in enumerate(tree.classes)}
        return Classes(labels, "folder name", True, "class_map", tree.root, inner, _order(tree) + _empty(tree, labels))


class FolderImages:
    """``Examples`` over files; holds paths and labels, no pixels.

    Attributes:
        classes: the class folders; ``None`` if the images lie in none, and so have no labels.
        notes: what was left out.
    """

    def __init__(self, root: Path, items: Sequence[Parts], classes: Classes | None, notes: Sequence[str] = ()) -> None:
        self._root, self._items, self.classes, self.notes = root, items, classes, list(notes)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Image.Image, int | None]:
        path = self._path(index)
        return decode(path, str(path)), None if self.classes is None else self.label(index)

    def label(self, index: int) -> int:
        """The label of the class folder; raises ``InputError`` if the image lies in none."""
        if self.classes is None:
            raise InputError(
                "the images lie in no class folders, so they have no labels",
                where=str(self._root),
                fix="store the images as <path>/<class>/<image>; only calibration needs no labels",
            )
        return self.classes.labels[self._items[index][0]]

    def key(self, index: int) -> str:
        """The file's path."""
        return str(self._path(index))

    def size_hint(self, index: int) -> int:
        """The file's size in bytes."""
        return require_file(self._path(index), "image").st_size

    def digest(self, index: int) -> str:
        """SHA-256 of the file."""
        return file_digest(self._path(index))

    def _path(self, index: int) -> Path:
        return self._root.joinpath(*self._items[index])


def _mapped(tree: FolderTree, value: str) -> Classes:
    """The classes by a class map; raises ``InputError`` if it does not list a class folder that holds images."""
    folders = {parts[0] for parts in tree.images}
    labels = class_map(value, folders)
    unknown = sorted(folders - labels.keys())
    if unknown:
        fix = f"use the class map of this folder; the given one has {len(labels)} classes, first '{next(iter(labels))}'"
        what = (
            f"the class map does not list {len(unknown)} of the {len(folders)} class folders in {tree.root}: "
            f"{listed(unknown, 5)}"
        )
        raise InputError(what, where=value, fix=fix)
    by = "ImageNet-1k's class map" if value == IMAGENET else f"class map {Path(value).name}"
    return Classes(labels, by, False, "class_map", tree.root, notes=_empty(tree, labels))


def _empty(tree: FolderTree, labels: Mapping[str, int]) -> list[str]:
    held = {parts[0] for parts in tree.images}
    empty = [name for name in tree.classes if name in labels and name not in held]
    if not empty:
        return []
    which = f"class folder {empty[0]} holds" if len(empty) == 1 else f"{len(empty)} class folders hold"
    names = "" if len(empty) == 1 else f": {listed(empty)}"
    return [f"{tree.root}: {which} no image, and {'its' if len(empty) == 1 else 'their'} label is counted{names}"]


def _order(tree: FolderTree) -> list[str]:
    by_code_point = sorted(tree.classes)
    first = next((pair for pair in zip(tree.classes, by_code_point, strict=True) if pair[0] != pair[1]), None)
    if first is None:
        return []
    label = tree.classes.index(first[0])
    return [
        f"{tree.root}: the labels follow timm's order of class folders (2 before 10, without case), where label "
        f"{label} is {first[0]}; in torchvision's order it is {first[1]}: a model trained with that needs a class_map"
    ]
