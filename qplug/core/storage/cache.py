"""Results kept in a folder, found again by what they were computed from. It is never the reason that a run fails.

Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplug.core.storage.atomic import copies, partial_prefix, sweep
from qplug.core.storage.hashing import content_key, fingerprint

if TYPE_CHECKING:
    from torch import Tensor

MB = 10**6
_KIND, _KEY = re.compile(r"[a-z][a-z0-9_-]*"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """What was kept: tensors on the CPU, and what a caller noted about them."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]


@dataclass(frozen=True)
class Held:
    """An entry as a file: ``size`` in bytes, and when it was ``used`` last, in nanoseconds since the epoch."""

    kind: str
    key: str
    path: Path
    size: int
    used: int


class Cache:
    """A folder of entries ``<folder>/<kind>/<key[:2]>/<key>.safetensors``, which any number of processes may share.

    An entry appears whole or not at all, and is verified by its checksum whenever it is loaded, so it need not be
    flushed to the disk. What cannot be read or written adds one sentence to ``warnings`` and is otherwise as if there
    were no cache.

    Args:
        folder: made when something is first stored.
        limit_mb: 10^6 bytes that all entries may take; those used longest ago go first.
    """

    def __init__(self, folder: Path, limit_mb: int = 8192) -> None:
        self.folder = Path(folder)
        self.warnings: list[str] = []
        self._limit = limit_mb * MB
        self._size: int | None = None  # not known before the folder was looked through

    def load(self, kind: str, key: str) -> Entry | None:
        """The entry, or ``None``; a file in its place that is damaged or not ours is removed.

        Args:
            kind: what was computed: lower-case letters, digits, ``_`` and ``-``.
            key: 64 hexadecimal digits, of ``content_key``.
        """
        path = self._path(kind, key)
        try:
            content = path.read_bytes()  # not mapped: what is verified must not change on the disk behind our back
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._warn(f"cannot be read ({error.strerror}); what it keeps is computed again")
            return None
        entry = _decode(kind, key, content)
        with contextlib.suppress(OSError):
            if entry is None:
                path.unlink()
            else:
                os.utime(path)
        return entry

    def store(self, kind: str, key: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Keep an entry, in the place of one with its key.

        Args:
            kind, key: as in ``load``.
            tensors: by any names; they may be views, share storage and be on any device.
            about: JSON values; infinity and NaN are kept too.
        """
        from safetensors.torch import save

        path = self._path(kind, key)
        partial = self.folder / f"{partial_prefix(key)}{secrets.token_hex(4)}"
        whole, text = copies(tensors), json.dumps(dict(about))
        content = save(whole, {"about": text, "checksum": _checksum(kind, key, whole, text)})
        if len(content) > self._limit:
            self._warn(f"is limited to {self._limit // MB} MB; larger results are not kept")
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder)
            with partial.open("xb") as file:
                file.write(content)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, path)
            self._make_room(len(content))
        except OSError as error:
            self._warn(f"cannot be written to ({error.strerror}); nothing new is kept in it")
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def entries(self) -> list[Held]:
        """All entries, the one used longest ago first."""
        found = []
        for path in self.folder.glob("*/??/*.safetensors"):
            kind, key = path.parts[-3], path.stem
            if _KIND.fullmatch(kind) and _KEY.fullmatch(key):
                with contextlib.suppress(OSError):  # another process prunes too
                    status = path.stat()
                    found.append(Held(kind, key, path, status.st_size, status.st_mtime_ns))
        return sorted(found, key=lambda held: held.used)

    def size_mb(self) -> float:
        """What all entries take, in 10^6 bytes."""
        return sum(held.size for held in self.entries()) / MB

    def clear(self) -> None:
        """Remove all entries, what killed processes left, and no file that is not the cache's own."""
        self._prune(0)
        with contextlib.suppress(OSError):
            sweep(self.folder)

    def _make_room(self, added: int) -> None:
        """Keep to the limit, and go some way below it, so that not every store has to look through the folder."""
        self._size = sum(held.size for held in self.entries()) if self._size is None else self._size + added
        if self._size > self._limit:
            self._prune(max(self._limit * 9 // 10, added))

    def _prune(self, wanted: int) -> None:
        entries = self.entries()
        self._size = sum(held.size for held in entries)
        for held in entries:
            if self._size <= wanted:
                return
            try:
                held.path.unlink(missing_ok=True)
                self._size -= held.size
            except OSError as error:
                self._warn(f"cannot be pruned ({error.strerror})")

    def _path(self, kind: str, key: str) -> Path:
        if not _KIND.fullmatch(kind) or not _KEY.fullmatch(key):
            raise ValueError(f"a kind of lower-case letters and a key of content_key, received {kind!r} and {key!r}")
        return self.folder / kind / key[:2] / f"{key}.safetensors"

    def _warn(self, what: str) -> None:
        sentence = f"the cache {self.folder} {what}"
        if sentence not in self.warnings:
            self.warnings.append(sentence)


def _checksum(kind: str, key: str, tensors: dict[str, Tensor], about: str) -> str:
    """Of everything, its place included: a file under another name is no entry."""
    return content_key(kind=kind, key=key, tensors=fingerprint(tensors), about=about)


def _decode(kind: str, key: str, content: bytes) -> Entry | None:
    """The entry that ``store`` wrote, or ``None`` where ``content`` is anything else."""
    from safetensors.torch import load

    try:
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        metadata, tensors = json.loads(header)["__metadata__"], load(content)
        if metadata["checksum"] == _checksum(kind, key, tensors, metadata["about"]):
            return Entry(tensors, json.loads(metadata["about"]))
    except Exception:  # a damaged or foreign file fails in any way: of JSON, of safetensors, of a key that it lacks
        return None
    return None


class CacheSlot:
    """The place of one result in a cache.

    Attributes:
        tensors: of the result, on the CPU; ``None`` where it is not in the cache.
        about: JSON values beside them.
        keeps: whether a result can be kept here.
    """

    def __init__(self, cache: Cache | None, kind: str, key: str, entry: Entry | None) -> None:
        self.tensors: Mapping[str, Tensor] | None = entry.tensors if entry else None
        self.about: Mapping[str, Any] = entry.about if entry else {}
        self._place, self._cache, self._start = (kind, key), cache, time.perf_counter()
        self.keeps = cache is not None

    def keep(
        self, tensors: Mapping[str, Tensor], seconds: float | None = None, about: Mapping[str, Any] | None = None
    ) -> None:
        """Keep a result, which took ``seconds`` to compute, or the time since the slot was made; ``about`` is JSON."""
        if self._cache is not None:
            seconds = time.perf_counter() - self._start if seconds is None else seconds
            self._cache.store(*self._place, tensors, {**(about or {}), "seconds": seconds})
