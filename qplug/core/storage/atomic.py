"""Files that are complete or absent, whatever happens while they are written, and what killed writers leave behind."""

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
    """How the name of what is being written begins; letters that make it unique must follow."""
    return f".{name}.partial-{os.getpid()}-{_host()}"


def sweep(parent: Path) -> None:
    """Remove what is partial in ``parent``, file or folder, and whose process, on this machine, is no more."""
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
    """This machine's name in 8 digits: on a shared disk, the process numbers of another machine mean nothing here."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors can write them: on the CPU, contiguous, and each with storage of its own."""
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}


def check_file(path: Path, option: str) -> None:
    """Refuse, before any work is done, a file that cannot be written; raises ``InputError`` naming ``option``.

    A file that exists will be replaced.
    """
    folder = path.absolute().parent
    if path.is_dir():
        raise InputError("is a folder, and a file is to be written", where=str(path), fix=f"name a file with {option}")
    if not folder.is_dir():
        raise InputError("there is no such folder", where=str(folder), fix=f"make it, or name another with {option}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError("cannot be written to", where=str(folder), fix=f"name a file elsewhere with {option}")


def write_file(path: Path, content: bytes) -> None:
    """Write beside ``path`` and rename; raises ``QplugError`` where that fails, and then leaves nothing behind."""
    partial = ""
    try:
        handle, partial = tempfile.mkstemp(prefix=partial_prefix(path.name), dir=path.absolute().parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)  # mkstemp's file is closed to everyone else
        os.replace(partial, path)
    except OSError as error:
        raise QplugError(
            f"cannot be written: {error.strerror or error}", where=str(path), fix="make room, or name another file"
        ) from error
    finally:
        with suppress(OSError):
            os.unlink(partial)
