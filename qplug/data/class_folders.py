"""The images below class folders: which files count, which folders are classes, and the order of the classes."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from qplug.core.errors import InputError
from qplug.core.storage.plain_file import KINDS
from qplug.core.text import listed
from qplug.data.image_files import suffixes

Parts = tuple[str, ...]
"""A path below the data set's folder, part by part."""

PASSED_OVER = frozenset(
    {"__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "lost+found", "system volume information"}
)
"""Folders that operating systems and storage servers make, in lower case; they hold thumbnails and deleted files."""
QUIET = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
"""Files that file managers make, in lower case."""


def passed_over(name: str) -> bool:
    """Whether a file or folder is no part of a data set by its name: hidden, or made by a system."""
    return name.startswith(".") or name.lower() in PASSED_OVER


def natural(name: str) -> tuple[list[int | str], str]:
    """A sort key in timm's order of class folders: ``2`` before ``10``, without case; equal names by code point."""
    parts = re.split(r"(\d+)", name.lower())  # text and numbers in turn, so that positions compare
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


@dataclass
class FolderTree:
    """What lies below the folder of a data set.

    Attributes:
        root: the folder.
        images: the images in class folders, sorted by code points.
        loose: the images directly in ``root``, sorted likewise.
        classes: the folders directly in ``root``, in timm's order; some may be empty.
        counts: the number of files in class folders that are no images, by suffix.
        others: the first two of these files.
        repeated: links to folders and files that are counted already under another name.
        twins: the number of images that are hard links of another one.
    """

    root: Path
    images: list[Parts] = field(default_factory=list)
    loose: list[Parts] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    others: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    twins: int = 0

    def notes(self) -> list[str]:
        """What was left out, one sentence each."""
        found = []
        if self.counts:
            kinds = ", ".join(f"{suffix or 'without a suffix'} ({n})" for suffix, n in self.counts.most_common(5))
            found.append(
                f"{self.root}: {_files(self.counts.total())} left out, since PIL decodes no such images: {kinds}; "
                f"such as {listed(self.others, 2)}"
            )
        if self.images and self.loose:
            found.append(
                f"{self.root}: {_files(len(self.loose))} left out, since no class folder holds it: "
                f"{listed(('/'.join(parts) for parts in self.loose), 2)}"
            )
        if self.repeated:
            links = "1 link leads" if len(self.repeated) == 1 else f"{len(self.repeated)} links lead"
            found.append(
                f"{self.root}: {links} to folders or images that are read already, and each image is counted once: "
                f"{listed(self.repeated)}"
            )
        if self.twins:
            links = "is a hard link" if self.twins == 1 else "are hard links"
            found.append(f"{self.root}: {self.twins} of its images {links} of another image, and counted too")
        return found


def _files(count: int) -> str:
    return f"{count} file is" if count == 1 else f"{count} files are"


def read_tree(root: Path) -> FolderTree:
    """List the images below ``root`` without opening them; links are followed, and no folder is walked twice.

    Raises:
        InputError: a folder cannot be read; a link leads to nothing; or an image is a pipe, a device or a socket.
    """
    return _Walk(root).walk()


class _Walk:
    """One walk. Plain folders and files come first, so that links to them are the ones that count as repeated."""

    def __init__(self, root: Path) -> None:
        self.tree = FolderTree(root)
        real = Path(os.path.realpath(root))
        self._above = {_identity(folder) for folder in (real, *real.parents)}  # a link to one would find the root again
        self._seen = set(self._above)
        self._linked_folders: list[Parts] = []
        self._linked_files: list[Parts] = []
        self._inodes: set[tuple[int, int]] = set()
        self._broken: list[str] = []

    def walk(self) -> FolderTree:
        tree = self.tree
        self._folder(())
        while self._linked_folders:
            round_, self._linked_folders = sorted(self._linked_folders), []
            for parts in round_:
                self._enter(parts)
        self._files_behind_links()
        if self._broken:
            raise InputError(
                f"cannot be read as images: {listed(sorted(self._broken), 5)}",
                where=str(tree.root),
                fix="replace or remove them",
            )
        tree.images.sort()
        tree.loose.sort()
        tree.repeated.sort()
        tree.classes.sort(key=natural)
        return tree

    def _folder(self, parts: Parts) -> None:
        """Read one folder and its plain subfolders; links are kept for later."""
        pending = [parts]
        while pending:
            here = pending.pop()
            device = self.tree.root.joinpath(*here).stat().st_dev
            for entry in self._entries(here):
                if passed_over(entry.name):
                    continue
                below = (*here, entry.name)
                if entry.is_symlink():
                    self._link(below)
                elif entry.is_dir(follow_symlinks=False):
                    self._class(below)
                    if self._is_new(below):
                        pending.append(below)
                elif not entry.is_file(follow_symlinks=False):
                    self._special(below, entry.stat(follow_symlinks=False).st_mode)
                elif self._is_image(below):
                    self._count(below)
                    inode = (device, entry.inode())
                    self.tree.twins += inode in self._inodes
                    self._inodes.add(inode)

    def _entries(self, parts: Parts) -> list[os.DirEntry[str]]:
        path = self.tree.root.joinpath(*parts)
        try:
            with os.scandir(path) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"the folder cannot be read: {error.strerror}", where=str(path)) from error

    def _link(self, parts: Parts) -> None:
        path = self.tree.root.joinpath(*parts)
        try:
            mode = path.stat().st_mode
        except OSError as error:
            dangling = isinstance(error, FileNotFoundError)
            reason = "a link to a file that does not exist" if dangling else str(error.strerror).lower()
            self._broken.append(f"{'/'.join(parts)} ({reason})")
            return
        if stat.S_ISDIR(mode) and _identity(path) in self._above:
            self.tree.repeated.append("/".join(parts))
        elif stat.S_ISDIR(mode):
            self._class(parts)
            self._linked_folders.append(parts)
        elif stat.S_ISREG(mode):
            self._linked_files.append(parts)
        else:
            self._special(parts, mode)

    def _enter(self, parts: Parts) -> None:
        if self._is_new(parts):
            self._folder(parts)

    def _is_new(self, parts: Parts) -> bool:
        identity = _identity(self.tree.root.joinpath(*parts))
        if identity in self._seen:
            self.tree.repeated.append("/".join(parts))
            return False
        self._seen.add(identity)
        return True

    def _class(self, parts: Parts) -> None:
        if len(parts) == 1:
            self.tree.classes.append(parts[0])

    def _special(self, parts: Parts, mode: int) -> None:
        if self._is_image(parts):
            self._broken.append(f"{'/'.join(parts)} ({KINDS.get(stat.S_IFMT(mode), 'no file')})")

    def _is_image(self, parts: Parts) -> bool:
        """Whether the suffix is an image's; other files in class folders are noted."""
        suffix = os.path.splitext(parts[-1])[1].lower()
        if suffix in suffixes():
            return True
        if len(parts) > 1 and parts[-1].lower() not in QUIET:
            self.tree.counts[suffix] += 1
            if self.tree.counts.total() <= 2:
                self.tree.others.append("/".join(parts))
        return False

    def _count(self, parts: Parts) -> None:
        (self.tree.images if len(parts) > 1 else self.tree.loose).append(parts)

    def _files_behind_links(self) -> None:
        linked = [parts for parts in sorted(self._linked_files) if self._is_image(parts)]
        if not linked:
            return
        root = self.tree.root
        folders: dict[Parts, str] = {}
        known = set()
        for parts in (*self.tree.images, *self.tree.loose):
            folder = folders.setdefault(parts[:-1], os.path.realpath(root.joinpath(*parts[:-1])))
            known.add(os.path.join(folder, parts[-1]))
        for parts in linked:
            target = os.path.realpath(root.joinpath(*parts))
            if target in known:
                self.tree.repeated.append("/".join(parts))
            else:
                known.add(target)
                self._count(parts)


def _identity(folder: Path) -> tuple[int, int] | str:
    """What two names of one folder share."""
    status = folder.stat()
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def inner_folders(tree: FolderTree) -> dict[Path, int]:
    """Each folder of ``tree.root`` whose images all lie in folders of its own, with the number of these folders."""
    flat = {parts[0] for parts in tree.images if len(parts) == 2}
    found = {}
    for name in dict.fromkeys(parts[0] for parts in tree.images):
        if name not in flat:
            path = tree.root / name
            found[path] = sum(entry.is_dir() and not passed_over(entry.name) for entry in os.scandir(path))
    return found
