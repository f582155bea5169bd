"""Cache of tensors in a folder, keyed by the inputs of their computation. Its errors are warnings and stop no run.

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
LIMIT_MB = 8192
"""Size limit of a cache unless given, in MB."""
_KIND, _KEY = re.compile(r"[a-z][a-z0-9_-]*"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CacheEntry:
    """A cached result: tensors on the CPU, and ``about``, JSON values that the caller stored with them."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]


@dataclass(frozen=True)
class CacheFile:
    """The file of an entry: its ``size`` in bytes, and the time of last use, ``used``, in ns since the epoch."""

    kind: str
    key: str
    path: Path
    size: int
    used: int


class Cache:
    """A folder of entries ``<folder>/<kind>/<key[:2]>/<key>.safetensors``, which any number of processes may share.

    An entry is complete or absent. Every load verifies its checksum, so writes need not be flushed to the disk. An
    entry that cannot be read or written adds one sentence to ``warnings``; its result is computed without the cache.

    Args:
        folder: created when the first entry is stored.
        limit_mb: size limit of all entries, in MB of 10^6 bytes; the least recently used are removed first.
    """

    def __init__(self, folder: Path, limit_mb: int = LIMIT_MB) -> None:
        self.folder = Path(folder)
        self.warnings: list[str] = []
        self.limit_mb = limit_mb
        self._limit = limit_mb * MB
        self._size: int | None = None  # unknown until the entries are listed

    def load(self, kind: str, key: str) -> CacheEntry | None:
        """The entry, or ``None``. A file at its path that is damaged or was not written by the cache is removed.

        Args:
            kind: kind of the result: lower-case letters, digits, ``_`` and ``-``.
            key: 64 hexadecimal digits, from ``content_key``.
        """
        path = self._path(kind, key)
        try:
            content = path.read_bytes()  # not memory-mapped: the file could change after its verification
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._warn(f"cannot be read ({error.strerror}); its results are computed again")
            return None
        entry = _decode(kind, key, content)
        with contextlib.suppress(OSError):
            if entry is None:
                path.unlink()
            else:
                os.utime(path)
        return entry

    def store(self, kind: str, key: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Store an entry; an existing entry with this key is replaced.

        Args:
            kind, key: as in ``load``.
            tensors: tensors by name; they may be views, share storage and be on any device.
            about: JSON values, infinity and NaN included.
        """
        from safetensors.torch import save

        path = self._path(kind, key)
        partial = self.folder / f"{partial_prefix(key)}{secrets.token_hex(4)}"
        whole, text = copies(tensors), json.dumps(dict(about))
        content = save(whole, {"about": text, "checksum": _checksum(kind, key, whole, text)})
        if len(content) > self._limit:
            self._warn(f"is limited to {self._limit // MB} MB; larger results are not stored")
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
            self._warn(f"cannot be written to ({error.strerror}); new results are not stored")
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def entries(self) -> list[CacheFile]:
        """The files of all entries, the least recently used first."""
        files = []
        for path in self.folder.glob("*/??/*.safetensors"):
            kind, key = path.parts[-3], path.stem
            if _KIND.fullmatch(kind) and _KEY.fullmatch(key):
                with contextlib.suppress(OSError):  # another process may remove it at the same time
                    status = path.stat()
                    files.append(CacheFile(kind, key, path, status.st_size, status.st_mtime_ns))
        return sorted(files, key=lambda file: file.used)

    def size_mb(self) -> float:
        """The size of all entries, in MB of 10^6 bytes."""
        return sum(file.size for file in self.entries()) / MB

    def clear(self) -> None:
        """Remove all entries and the partial files of killed processes; other files in the folder stay."""
        self.prune(0)

    def prune(self, limit_mb: int) -> None:
        """Remove entries, the least recently used first, until at most ``limit_mb`` remain; sweep as ``clear`` does."""
        self._prune(limit_mb * MB)
        with contextlib.suppress(OSError):
            sweep(self.folder)

    def _make_room(self, added: int) -> None:
        """Remove entries if the limit is exceeded, down to 90 % of it, so that not every store lists the folder."""
        self._size = sum(file.size for file in self.entries()) if self._size is None else self._size + added
        if self._size > self._limit:
            self._prune(max(self._limit * 9 // 10, added))

    def _prune(self, wanted: int) -> None:
        """Remove entries, the least recently used first, until at most ``wanted`` bytes remain."""
        files = self.entries()
        self._size = sum(file.size for file in files)
        for file in files:
            if self._size <= wanted:
                return
            try:
                file.path.unlink(missing_ok=True)
                self._size -= file.size
            except OSError as error:
                self._warn(f"cannot be pruned ({error.strerror})")

    def _path(self, kind: str, key: str) -> Path:
        if not _KIND.fullmatch(kind) or not _KEY.fullmatch(key):
            raise ValueError(f"expected a lower-case kind and a key of content_key, received {kind!r} and {key!r}")
        return self.folder / kind / key[:2] / f"{key}.safetensors"

    def _warn(self, what: str) -> None:
        sentence = f"the cache {self.folder} {what}"
        if sentence not in self.warnings:
            self.warnings.append(sentence)


def _checksum(kind: str, key: str, tensors: dict[str, Tensor], about: str) -> str:
    """Checksum of the entry with its kind and key: a renamed file is not a valid entry."""
    return content_key(kind=kind, key=key, tensors=fingerprint(tensors), about=about)


def _decode(kind: str, key: str, content: bytes) -> CacheEntry | None:
    """The entry in ``content``, or ``None`` if ``store`` did not write it under this kind and key."""
    from safetensors.torch import load

    try:
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        metadata, tensors = json.loads(header)["__metadata__"], load(content)
        if metadata["checksum"] == _checksum(kind, key, tensors, metadata["about"]):
            return CacheEntry(tensors, json.loads(metadata["about"]))
    except Exception:  # a damaged or foreign file raises many types: of JSON, of safetensors, KeyError
        return None
    return None


class CacheSlot:
    """One result's entry in a cache, whether it exists or is still to be stored.

    Attributes:
        tensors: tensors of the result, on the CPU; ``None`` if the cache does not hold it.
        about: JSON values stored with the tensors.
        keeps: whether a result can be stored.
    """

    def __init__(self, cache: Cache | None, kind: str, key: str, entry: CacheEntry | None) -> None:
        self.tensors: Mapping[str, Tensor] | None = entry.tensors if entry else None
        self.about: Mapping[str, Any] = entry.about if entry else {}
        self._place, self._cache, self._start = (kind, key), cache, time.perf_counter()
        self.keeps = cache is not None

    def keep(
        self, tensors: Mapping[str, Tensor], seconds: float | None = None, about: Mapping[str, Any] | None = None
    ) -> None:
        """Store a result that took ``seconds`` to compute (by default, since the slot was created) with JSON values."""
        if self._cache is not None:
            seconds = time.perf_counter() - self._start if seconds is None else seconds
            self._cache.store(*self._place, tensors, {**(about or {}), "seconds": seconds})
