"""Run folders: each is written under a temporary name and renamed, so that an existing run folder is complete."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qplug.core.errors import InputError, QplugError
from qplug.core.storage.atomic import copies, partial_prefix, sweep

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

FORMAT = 4
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

    def write_tensors(
        self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write safetensors; tensors that share storage are written as separate copies."""
        from safetensors.torch import save

        with self._writing():  # not save_file, whose files only the owner can read
            self.path(name).write_bytes(save(copies(tensors), dict(metadata or {})))

    def _commit(self, partial: Path) -> None:
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


@dataclass(frozen=True)
class Run:
    """A run folder that was read; its larger files are read at first use. ``qplug.pipeline.weights`` reads weights."""

    folder: Path
    lock: dict[str, Any]
    metrics: dict[str, Any]

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe."""
        return _read_yaml(self.folder / "recipe.yaml")

    @cached_property
    def plan(self) -> dict[str, Any]:
        """The plan, as returned by ``Plan.to_dict``."""
        return _read_json(self.folder / "plan.json")

    @cached_property
    def evaluation(self) -> dict[str, NDArray[Any]]:
        """The results of every evaluation example, (N,) each, from ``evaluation.safetensors``."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = self.folder / "evaluation.safetensors"
        try:
            tensors: dict[str, NDArray[Any]] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"the file cannot be read: {error}", where=str(path), fix=AGAIN) from error
        return tensors


def read_run(folder: str | Path) -> Run:
    """Read a run folder; raises ``InputError`` if it is not one, is incomplete, or has an unsupported format."""
    folder = Path(folder)
    if not os.path.isdir(folder):  # unlike Path.is_dir, it does not raise for a path without access
        what = "is a file, not a run folder" if os.path.lexists(folder) else "there is no such run folder"
        raise InputError(what, where=str(folder))
    if not os.path.isfile(folder / "lock.json"):
        raise InputError("is not a run folder: lock.json missing", where=str(folder))
    lock = _read_json(folder / "lock.json")
    if lock.get("format") != FORMAT:
        what = f"a run folder of format {FORMAT} was expected, received {lock.get('format')!r}"
        fix = f"run its recipe again: qplug run {folder / 'recipe.yaml'} --out NEW_FOLDER"
        raise InputError(what, where=str(folder / "lock.json"), fix=fix)
    missing = [name for name in FILES if not os.path.isfile(folder / name)]
    if missing:
        raise InputError(f"is not a whole run folder: {', '.join(missing)} missing", where=str(folder), fix=AGAIN)
    return Run(folder, lock, _read_json(folder / "metrics.json"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"the file cannot be read: {error}", where=str(path)) from error
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object, received {type(value).__name__}", where=str(path))
    return value


def _read_yaml(path: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        value = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError) as error:
        raise InputError(f"the file cannot be read: {error}", where=str(path)) from error
    if not isinstance(value, dict):
        raise InputError(f"expected a YAML mapping, received {type(value).__name__}", where=str(path))
    return value
