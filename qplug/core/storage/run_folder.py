"""Run folders: written beside their place and renamed, so that a run folder that exists is complete."""

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
    """Refuse a run folder that exists or cannot be made, before any work is done; raises ``InputError``."""
    if os.path.lexists(target):
        raise InputError("this run folder exists", where=str(target), fix="name another with --out, or remove it")
    parent = _existing(target.absolute().parent)
    if not parent.is_dir():
        raise InputError("is no folder, so no run folder can be made in it", where=str(parent))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError("cannot be written to, so no run folder can be made in it", where=str(parent))
    longest = f"{partial_prefix(target.name)}12345678"
    if len(os.fsencode(longest)) > 255:
        raise InputError(
            "the name of the run folder is too long", where=str(target), fix="name a shorter one with --out"
        )


class RunFolder:
    """Writes a run folder: ``with RunFolder(target) as folder: folder.write_json(…)``; committed where the block ends.

    Everything goes to ``.<name>.partial-<pid>-<host><random>`` beside ``target``. Where the block ends well, the files
    in ``required`` must be there, all is flushed to the disk, and the folder is renamed. Where it does not (an error,
    an interrupt, a signal that raises ``SystemExit``), it is removed. What a killed process left, the next one removes.

    Raises:
        InputError: ``target`` exists, or cannot be made.
        QplugError: the disk is full, or writing failed in another way; nothing is left behind.
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
            shutil.rmtree(partial, ignore_errors=True)  # gone already where it was renamed
            self._partial = None
        if isinstance(error, OSError):
            raise self._failed(error) from error

    def path(self, name: str = "") -> Path:
        """The folder that is being written, or a file in it, for writers of other formats; ``name`` has no folders."""
        if self._partial is None:
            raise ValueError("a RunFolder is written to inside its with block")
        if Path(name).name != name or name == "..":
            raise ValueError(f"a file of a run folder is named without folders, received {name!r}")
        return self._partial / name

    def write_text(self, name: str, text: str) -> None:
        """Write UTF-8 text."""
        with self._writing():
            self.path(name).write_text(text, encoding="utf-8", newline="\n")

    def write_json(self, name: str, value: Any) -> None:
        """Write strict JSON; numbers that JSON lacks (NaN, infinity: an SQNR without noise) become ``null``."""
        self.write_text(name, to_json(value))

    def write_tensors(
        self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write safetensors; tensors that share storage are written as copies of their own."""
        from safetensors.torch import save

        with self._writing():  # not save_file, whose files are closed to everyone else
            self.path(name).write_bytes(save(copies(tensors), dict(metadata or {})))

    def _commit(self, partial: Path) -> None:
        missing = [name for name in self.required if not (partial / name).is_file()]
        if missing:
            raise QplugError(f"the run folder is not complete: {', '.join(missing)} missing", where=str(self.target))
        with self._writing():
            umask = os.umask(0)
            os.umask(umask)
            partial.chmod(0o777 & ~umask)  # mkdtemp's folder is closed to everyone else
            for file in sorted(partial.rglob("*")):
                _flush(file)
            _flush(partial)
            if os.path.lexists(self.target):
                raise InputError("appeared while the run was working; nothing was written", where=str(self.target))
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
        fix = "make room, or name a folder on another disk with --out"
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
    """Make the disk hold what was written; folders too, where the system can open them."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Run:
    """A run folder, read back; larger files wait for use. Weights are read by ``qplug.pipeline.weights``."""

    folder: Path
    lock: dict[str, Any]
    metrics: dict[str, Any]

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """As it was resolved."""
        return _read_yaml(self.folder / "recipe.yaml")

    @cached_property
    def plan(self) -> dict[str, Any]:
        """As ``Plan.to_dict`` gave it."""
        return _read_json(self.folder / "plan.json")

    @cached_property
    def evaluation(self) -> dict[str, NDArray[Any]]:
        """The answers to every evaluation image, (N,) each: ``evaluation.safetensors`` of the folder."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = self.folder / "evaluation.safetensors"
        try:
            tensors: dict[str, NDArray[Any]] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot be read: {error}", where=str(path), fix=AGAIN) from error
        return tensors


def read_run(folder: str | Path) -> Run:
    """Read a run folder; raises ``InputError`` where it is none, lacks a file, or is of a format that is not known."""
    folder = Path(folder)
    if not os.path.isdir(folder):  # as Path.is_dir, without errors for what cannot be looked at
        what = "is a file, not a run folder" if os.path.lexists(folder) else "there is no such run folder"
        raise InputError(what, where=str(folder))
    if not os.path.isfile(folder / "lock.json"):
        raise InputError("is not a run folder: lock.json missing", where=str(folder))
    lock = _read_json(folder / "lock.json")
    if lock.get("format") != FORMAT:
        what = f"a run folder of format {FORMAT} was expected, received {lock.get('format')!r}"
        wrote = f"qplug {lock['qplug']}" if "qplug" in lock else "the qplug"
        fix = f"run its recipe again, or read it with {wrote} that wrote it"
        raise InputError(what, where=str(folder / "lock.json"), fix=fix)
    missing = [name for name in FILES if not os.path.isfile(folder / name)]
    if missing:
        raise InputError(f"is not a whole run folder: {', '.join(missing)} missing", where=str(folder), fix=AGAIN)
    return Run(folder, lock, _read_json(folder / "metrics.json"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from error
    if not isinstance(value, dict):
        raise InputError("holds no JSON object", where=str(path))
    return value


def _read_yaml(path: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        value = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from error
    if not isinstance(value, dict):
        raise InputError("holds no mapping", where=str(path))
    return value
