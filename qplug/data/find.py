"""Find the parts of a data set in a folder: what calibrates, what is held out, and the class map."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qplug.core.errors import InputError
from qplug.core.storage.plain_file import refuse_special
from qplug.core.text import listed
from qplug.data.class_folders import passed_over
from qplug.data.class_map import IMAGENET, imagenet_synsets
from qplug.data.image_files import suffixes

TRAIN = ("train", "training", "calib", "calibration")
HELD_OUT = ("val", "valid", "validation", "dev", "eval", "evaluation", "test", "testing")
"""Names of parts, in lower case; the first that is there is taken."""
COCO_FILES = ("instances.json", "_annotations.coco.json", "annotations.json", "boxes.json")
"""Names of annotations in the folder of a part; those with masks first."""
CLASS_MAP = "class_map.txt"
LAYOUT = "expected a folder with train and val in it, each with one folder for each class, or with parquet files"


@dataclass(frozen=True)
class FoundData:
    """What ``find_data`` found.

    Attributes:
        train, held_out: values of a recipe's data source, without the number of images.
        classes: the number of class folders whose names give the labels; ``None`` where something else does.
        notes: what was found, one sentence each.
    """

    train: dict[str, Any]
    held_out: dict[str, Any]
    classes: int | None = None
    notes: list[str] = field(default_factory=list)


def find_data(root: Path) -> FoundData:
    """The parts of the data set in ``root``, by the names of its folders or parquet files; no image is opened.

    Annotations in COCO's layout go before all else: ``annotations/instances_val2017.json`` beside ``val2017``, or
    a file such as ``val/instances.json``. ``class_map.txt`` in ``root`` is the class map. Without it, folders named as
    those of ImageNet-1k get ImageNet's.

    Raises:
        InputError: ``root`` is no folder, or holds no two such parts.
    """
    root = root.expanduser()
    if refuse_special(root, "folder") is None or not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "the folder does not exist"
        raise InputError(what, where=f"--data {root}")
    if (coco := _coco(root)) is not None:
        return coco
    folders = _folders(root)
    parts = [_part(folders, names) for names in (TRAIN, HELD_OUT)]
    if all(parts) and not any(_parquet(root / name) for name in parts if name):
        return _of_folders(root, str(parts[0]), str(parts[1]), folders)
    if files := _parquet(root):
        return _of_parquet(root, files)
    raise _refusal(root, folders, parts)


def _coco(root: Path) -> FoundData | None:
    """Both parts in COCO's layout, ``None`` if one has no annotations."""
    found = [
        next((one for name in names if (one := _coco_part(root, name)) is not None), None)
        for names in (TRAIN, HELD_OUT)
    ]
    if not all(found):
        return None
    sources = [{"source": "coco", "path": str(path), "annotations": str(file)} for path, file in filter(None, found)]
    roles = ("calibration", "evaluation")
    notes = [
        f"{role}: {one['path']}, objects by {one['annotations']}" for role, one in zip(roles, sources, strict=True)
    ]
    return FoundData(sources[0], sources[1], notes=notes)


def _coco_part(root: Path, name: str) -> tuple[Path, Path] | None:
    """The images of one part, and their annotations."""
    for folder in (name, f"{name}2017", f"{name}2014"):
        path = root / folder
        files = [path / one for one in COCO_FILES] + [root / "annotations" / f"instances_{folder}.json"]
        file = next((file for file in files if file.is_file()), None)
        if file is not None and path.is_dir():
            inner = path / "images"
            return (inner if inner.is_dir() else path), file
    return None


def _of_folders(root: Path, train: str, held_out: str, folders: Sequence[str]) -> FoundData:
    classes = _folders(root / held_out)
    if not classes:
        what = "its images lie in no class folders, so they have no labels to measure against"
        raise InputError(what, where=str(root / held_out), fix="store the images as <path>/<class>/<image>")
    given = root / CLASS_MAP
    if given.is_file():
        labels, by = str(given), f"by {given}"
    elif set(classes) <= set(imagenet_synsets()):
        labels, by = IMAGENET, "by ImageNet-1k's class map"
    else:
        labels, by = "", "by the order of the folders' names"
    more = {"class_map": labels} if labels else {}
    others = [name for name in folders if name.lower() in (*TRAIN, *HELD_OUT) and name not in (train, held_out)]
    notes = [
        f"calibration: {root / train}, {_counted(_folders(root / train))}",
        f"evaluation: {root / held_out}, {_counted(classes)}, labels {by}",
    ]
    notes += [f"not used: {listed(others, 5)} in {root}"] if others else []
    return FoundData(
        {"source": "folder", "path": str(root / train)},
        {"source": "folder", "path": str(root / held_out), **more},
        None if labels else len(classes),
        notes,
    )


def _of_parquet(root: Path, files: Sequence[str]) -> FoundData:
    found = [next((word for word in names if _with_word(files, word)), None) for names in (TRAIN, HELD_OUT)]
    if not all(found):
        raise InputError(
            f"{'no' if not any(found) else 'only one'} part of a data set is among its parquet files: {listed(files)}",
            where=f"--data {root}",
            fix=f"name files after their parts, such as train and {listed(HELD_OUT[:3], 3)}; or write a recipe",
        )
    sources: list[dict[str, Any]] = [{"source": "hf", "path": str(root), "split": word} for word in found]
    notes = [
        f"{role}: parquet files with '{word}' in their path, in {root}"
        for role, word in zip(("calibration", "evaluation"), found, strict=True)
    ]
    return FoundData(sources[0], sources[1], notes=notes)


def _refusal(root: Path, folders: Sequence[str], parts: Sequence[str | None]) -> InputError:
    if any(parts):
        missing = HELD_OUT[:3] if parts[0] else TRAIN[:2]
        what = f"holds {next(name for name in parts if name)}, and none of {', '.join(missing)}, …"
        return InputError(what, where=f"--data {root}", fix=LAYOUT)
    inner = [name for name in folders if any(_part(_folders(root / name), names) for names in (TRAIN, HELD_OUT))]
    if inner:
        what = "holds no parts of a data set itself"
        return InputError(what, where=f"--data {root}", fix=f"give {listed((str(root / name) for name in inner), 3)}")
    held = f"{len(folders)} folders: {listed(folders)}" if folders else "no folder and no parquet file"
    return InputError(
        f"{LAYOUT}; it holds {held}",
        where=f"--data {root}",
        fix="put the images to measure on into val, and others into train: calibration may not see the former",
    )


def _part(folders: Iterable[str], names: Sequence[str]) -> str | None:
    by_name = {folder.lower(): folder for folder in folders}
    return next((by_name[name] for name in names if name in by_name), None)


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not passed_over(entry.name))
    except OSError as error:
        raise InputError(f"the folder cannot be read: {error.strerror}", where=str(path)) from None


def _parquet(root: Path) -> list[str]:
    """Parquet files by their path below ``root``; a folder that holds images itself is not searched further."""
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not passed_over(name))
        if any(os.path.splitext(name)[1].lower() in suffixes() for name in files[:20]):
            folders.clear()
        below = Path(folder).relative_to(root)
        found += [(below / name).as_posix() for name in sorted(files) if name.endswith(".parquet")]
    return found


def _with_word(files: Iterable[str], word: str) -> bool:
    return any(re.search(rf"(?<![A-Za-z0-9]){word}(?![A-Za-z0-9])", name) for name in files)


def _counted(classes: Sequence[str]) -> str:
    if not classes:
        return "images without class folders"
    return f"{len(classes):,} class folder{'s' if len(classes) > 1 else ''}"
