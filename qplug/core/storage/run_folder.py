"""Run folders: each is written under a temporary name and renamed, so that an existing run folder is complete."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qplug.core.errors import InputError, QplugError
from qplug.core.storage.atomic import copies, partial_prefix, sweep
from qplug.core.storage.hashing import file_digest
from qplug.core.storage.run_schema import digest_of

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 5
AGAIN = "remove the folder, and run its recipe again"
FILES = ("recipe.yaml", "lock.json", "plan.json", "metrics.json", "evaluation.safetensors", "model.safetensors")


def check_target(target: Path) -> None:
    """Check, before a run starts, that ``target`` does not exist and can be created; raises ``InputError``."""
    if os.path.lexists(target):
        raise InputError("this run folder exists", where=str(target), fix="set another folder with --out, or remove it")
    parent = _existing(target.absolute().parent)
    if not parent.is_dir():
        raise InputError("expected a folder for the run folder, received a file", where=str(parent))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError("the folder cannot be written to, so no run folder can be created in it", where=str(parent))
    longest = f"{partial_prefix(target.name)}12345678"
    if len(os.fsencode(longest)) > 255:
        raise InputError(
            "the name of the run folder is too long", where=str(target), fix="set a shorter name with --out"
        )


class RunFolder:
    """Writer of a run folder: ``with RunFolder(target) as folder: folder.write_json(…)``.

    Files are written to ``.<name>.partial-<pid>-<host><random>`` beside ``target``. At the end of the block, the files
    in ``required`` must exist; all are flushed to the disk, and the folder is renamed. After an error, an interrupt or
    a signal that raises ``SystemExit``, the partial folder is removed. After a kill, the next run removes it.

    Raises:
        InputError: ``target`` exists or cannot be created.
        QplugError: a write failed, for example on a full disk; the partial folder is removed.
    """

    def __init__(self, target: str | Path, required: Sequence[str] = FILES) -> None:
        self.target, self.required = Path(target), tuple(required)
        self._partial: Path | None = None
        self._lock: dict[str, Any] | None = None

    def __enter__(self) -> RunFolder:
        check_target(self.target)
        with self._writing():
            parent = self.target.absolute().parent
            parent.mkdir(parents=True, exist_ok=True)
            sweep(parent)
            self._partial = Path(tempfile.mkdtemp(prefix=partial_prefix(self.target.name), dir=parent))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        partial = self.path()
        try:
            if error is None:
                self._commit(partial)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # it no longer exists if it was renamed
            self._partial = None
        if isinstance(error, OSError):
            raise self._failed(error) from error

    def path(self, name: str = "") -> Path:
        """Path of the partial folder, or of the file ``name`` in it, for writers of other formats."""
        if self._partial is None:
            raise ValueError("a RunFolder can only be written to inside its with block")
        if Path(name).name != name or name == "..":
            raise ValueError(f"expected a file name without folders, received {name!r}")
        return self._partial / name

    def write_text(self, name: str, text: str) -> None:
        """Write UTF-8 text."""
        with self._writing():
            self.path(name).write_text(text, encoding="utf-8", newline="\n")

    def write_json(self, name: str, value: Any) -> None:
        """Write strict JSON; NaN and infinity, such as an SQNR without noise, become ``null``."""
        self.write_text(name, to_json(value))

    def write_lock(self, values: Mapping[str, Any]) -> None:
        """Write ``lock.json`` at the end of the block, with the size and the digest of every other file.

        Its last value is the digest of the rest, so that a lock that was edited by accident is noticed.
        """
        self.path()
        self._lock = _finite(values)

    def write_tensors(
        self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write safetensors; tensors that share storage are written as separate copies."""
        from safetensors.torch import save

        with self._writing():  # not save_file, whose files only the owner can read
            self.path(name).write_bytes(save(copies(tensors), dict(metadata or {})))

    def _commit(self, partial: Path) -> None:
        if self._lock is not None:
            self._write_lock(partial, self._lock)
        missing = [name for name in self.required if not (partial / name).is_file()]
        if missing:
            raise QplugError(f"the run folder is incomplete: {', '.join(missing)} missing", where=str(self.target))
        with self._writing():
            umask = os.umask(0)
            os.umask(umask)
            partial.chmod(0o777 & ~umask)  # only the owner can open the folder that mkdtemp creates
            for file in sorted(partial.rglob("*")):
                _flush(file)
            _flush(partial)
            if os.path.lexists(self.target):
                raise InputError(
                    "the run folder was created by another process; nothing was written", where=str(self.target)
                )
            partial.rename(self.target.absolute())
            _flush(self.target.absolute().parent)

    def _write_lock(self, partial: Path, values: dict[str, Any]) -> None:
        with self._writing():
            files = {path.name: path for path in sorted(partial.iterdir()) if path.is_file()}
            records = {n: {"bytes": p.stat().st_size, "sha256": file_digest(p)} for n, p in files.items()}
            whole = {**values, "files": records}
            self.write_json("lock.json", {**whole, "digest": digest_of(whole)})

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> QplugError:
        reason = error.strerror or str(error)
        fix = "free disk space, or set a folder on another disk with --out"
        return QplugError(
            f"cannot write the run folder: {reason}; nothing was written", where=str(self.target), fix=fix
        )


def to_json(value: Any) -> str:
    """Strict, indented JSON text, with ``null`` for NaN and infinity."""
    return json.dumps(_finite(value), allow_nan=False, indent=2, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _flush(path: Path) -> None:
    """Flush a file or folder to the disk; Windows cannot open folders, so they are skipped there."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
