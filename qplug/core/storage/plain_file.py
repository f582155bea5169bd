"""Refusal of what is no plain file before it is opened: pipes block, and devices never end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from qplug.core.errors import InputError

KINDS = {
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}
"""Type of a directory entry → its name in messages."""


def require_file(path: Path, noun: str = "file") -> os.stat_result:
    """The status of the file at ``path``, or of the file that the link at ``path`` leads to; nothing is opened.

    Args:
        path: of a file to read.
        noun: what the file is, in messages.

    Raises:
        InputError: there is nothing, a dangling link, a folder, a pipe, a device or a socket, or no permission to look.
    """
    status = refuse_special(path, noun)
    if status is None:
        raise InputError(f"the {noun} does not exist", where=str(path))
    if stat.S_ISDIR(status.st_mode):
        raise InputError("is a folder, not a file", where=str(path), fix=f"name the {noun} itself")
    return status


def refuse_special(path: Path, noun: str = "file") -> os.stat_result | None:
    """The status of a file or folder; ``None`` if there is nothing. Raises as ``require_file`` for everything else."""
    thing = "folder" if noun == "folder" else "file"
    try:
        status = path.stat()
    except FileNotFoundError:
        if not path.is_symlink():
            return None
        what = f"is a link to a {thing} that does not exist: {os.readlink(path)}"
        raise InputError(what, where=str(path), fix=f"restore the {thing}, or remove the link") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        raise InputError(f"the {noun} cannot be read: {_reason(error)}", where=str(path)) from None
    kind = KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is not None:
        raise InputError(f"is {kind}, not a {thing}", where=str(path), fix=f"give a {noun} that is stored on disk")
    return status


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
