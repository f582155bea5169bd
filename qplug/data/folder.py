"""Data source of images in one folder per class."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from qplug.core.component import Config, DataSource
from qplug.core.errors import InputError
from qplug.core.storage.hashing import file_digest
from qplug.core.text import listed
from qplug.data.loading import IMAGES, choose, decode

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})


class Folder(DataSource):
    """Images in class folders, with ImageNet's layout ``<path>/<class>/…/<image>``.

    ``class_map`` defines the labels. It is a text file as in timm: one class per line, whose label is the line's index
    from 0, or ``<class> <label>`` on each line. Without it, the labels follow the natural order of the folders' names
    (``2`` before ``10``).
    """

    class Config(Config):
        """``data.*: {source: folder, path: …/val, class_map: …/class_map.txt}``."""

        source: Literal["folder"]
        path: str = Field(min_length=1, description="the folder that holds the class folders")
        class_map: str | None = Field(
            default=None, min_length=1, description="text file of class folder names; a label is the line's index"
        )
        images: int | None = Field(default=None, ge=1, description=IMAGES)

    def open(self, seed: int) -> FolderImages:
        """List and draw the images; raises ``InputError`` for an invalid path, class map or number."""
        root = Path(self.config.path).expanduser()
        if not root.is_dir():
            raise InputError(
                "is a file, not a folder" if root.exists() else "the folder does not exist", where=str(root)
            )
        # Sorted by code points of the path, so that a seed draws the same images on every file system.
        paths = sorted(_walk(root), key=lambda path: path.relative_to(root).parts)
        classes = {path.relative_to(root).parts[0] for path in paths}
        if not classes:
            raise InputError(
                f"no class folder in it holds an image ({', '.join(sorted(SUFFIXES))})",
                where=str(root),
                fix="store the images as <path>/<class>/<image>",
            )
        if self.config.class_map is None:
            labels = {name: label for label, name in enumerate(sorted(classes, key=_natural))}
        else:
            labels = read_class_map(Path(self.config.class_map).expanduser())
            _check_fit(classes, labels, root, self.config.class_map)
        chosen = choose(len(paths), self.config.images, seed, str(root))
        return FolderImages([(paths[i], labels[paths[i].relative_to(root).parts[0]]) for i in chosen])


class FolderImages:
    """``Examples`` over files; holds paths and labels, no pixels."""

    def __init__(self, items: Sequence[tuple[Path, int]]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self._items[index]
        return decode(path, str(path)), label

    def label(self, index: int) -> int:
        """The label of the class folder."""
        return self._items[index][1]

    def key(self, index: int) -> str:
        """The file's path."""
        return str(self._items[index][0])

    def size_hint(self, index: int) -> int:
        """The file's size in bytes."""
        return self._items[index][0].stat().st_size

    def digest(self, index: int) -> str:
        """SHA-256 of the file."""
        return file_digest(self._items[index][0])


def read_class_map(path: Path) -> dict[str, int]:
    """Class name → label, from timm's text format or from lines of ``<class> <label>``; raises ``InputError``."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"the class map cannot be read: {reason}", where=str(path)) from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise InputError("the class map is empty", where=str(path))
    numbered = [re.fullmatch(r"\s*(\S+)\s+(\d+)\s*", line) for line in lines]
    labels: dict[str, int] = {}
    for index, (line, match) in enumerate(zip(lines, numbered, strict=True)):
        # Numbers are labels only if every line ends with one: "tile 2" may be the name of a class.
        name, label = (match[1], int(match[2])) if match and all(numbered) else (line.strip(), index)
        if not name or name in labels:
            what = f"class '{name}' is listed twice" if name else "an empty line would shift the labels after it"
            raise InputError(what, where=f"{path}:{index + 1}")
        labels[name] = label
    return labels


def _check_fit(classes: set[str], labels: dict[str, int], root: Path, class_map: str) -> None:
    unknown = sorted(classes - labels.keys())
    if not unknown:
        return
    raise InputError(
        f"the class map does not list {len(unknown)} of the {len(classes)} class folders in {root}: "
        f"{listed(unknown, 5)}",
        where=class_map,
        fix=f"use the class map of this folder; the given one has {len(labels)} classes, first '{next(iter(labels))}'",
    )


def _walk(root: Path) -> list[Path]:
    paths = []
    for folder, _, names in os.walk(root, followlinks=True):
        if Path(folder) != root:
            paths += [Path(folder, name) for name in names if os.path.splitext(name)[1].lower() in SUFFIXES]
    return paths


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key that orders ``2`` before ``10``."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
