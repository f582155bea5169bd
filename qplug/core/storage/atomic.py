"""Atomic writes of files, and removal of the partial files that killed processes leave behind."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from qplug.core.errors import InputError, QplugError

if TYPE_CHECKING:
    from torch import Tensor

_PARTIAL = re.compile(r"\..+\.partial-(?P<pid>\d+)-(?P<host>[0-9a-f]{8})\w+")


def partial_prefix(name: str) -> str:
    """Prefix of the name of a partial file or folder; the caller appends characters that make it unique."""
    return f".{name}.partial-{os.getpid()}-{_host()}"


def sweep(parent: Path) -> None:
    """Remove the partial files and folders in ``parent`` whose process ran on this machine and has ended."""
    import psutil

    for entry in parent.iterdir():
        match = _PARTIAL.fullmatch(entry.name)
        if match and match["host"] == _host() and not psutil.pid_exists(int(match["pid"])):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with suppress(OSError):
                    entry.unlink()


def _host() -> str:
    """Hash of this machine's name, 8 digits: on a shared disk, a process id is only valid for its own machine."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that safetensors can write: on the CPU, contiguous, and without shared storage."""
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}


def check_file(path: Path, option: str) -> None:
    """Check, before a run starts, that ``path`` can be written; raises ``InputError`` naming ``option``.

    An existing file will be replaced.
    """
    folder = path.absolute().parent
    if path.is_dir():
        raise InputError("is a folder, not a file", where=str(path), fix=f"set {option} to a file")
    if not folder.is_dir():
        raise InputError("there is no such folder", where=str(folder), fix=f"create it, or change {option}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError("the folder cannot be written to", where=str(folder), fix=f"set {option} to another folder")


def write_file(path: Path, content: bytes) -> None:
    """Write a partial file beside ``path`` and rename it; raises ``QplugError`` on failure and removes the file.

    Partial files that killed processes left in the folder are removed too.
    """
    partial = ""
    with suppress(OSError):  # a folder that cannot be listed may still be written to
        sweep(path.absolute().parent)
    try:
        handle, partial = tempfile.mkstemp(prefix=partial_prefix(path.name), dir=path.absolute().parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)  # only the owner can read the file that mkstemp creates
        os.replace(partial, path)
    except OSError as error:
        raise QplugError(
            f"cannot be written: {error.strerror or error}",
            where=str(path),
            fix="free disk space, or set another file",
        ) from error
    finally:
        with suppress(OSError):
            os.unlink(partial)
