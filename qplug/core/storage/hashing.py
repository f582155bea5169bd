"""SHA-256 digests of values, files, code and images, used as cache keys.

Importing this module does not import torch. None of its functions loads a model or decodes an image.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplug.core.errors import InputError
from qplug.core.storage.plain_file import require_file

if TYPE_CHECKING:
    from qplug.core.examples import Examples

WITHOUT_INFLUENCE = {"qplug": ("analysis", "cli", "testing", "hooks/scaffold_template")}
"""Package → its folders whose code does not affect results. The template is in a wheel and not in a checkout."""

CODE = (".py", ".so", ".pyd")

_STARTED = time.time_ns()


def content_key(**parts: Any) -> str:
    """SHA-256 over the canonical JSON of ``parts``, as 64 hexadecimal digits; the order of keys does not matter.

    Args:
        parts: strings, finite numbers, booleans, ``None``, and lists and dicts (their keys strings) of these.

    Raises:
        TypeError: a value that JSON cannot represent.
        ValueError: NaN or infinity.
    """
    text = json.dumps(parts, allow_nan=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Each process reads a file once unless it changes.

    Raises ``InputError`` if it cannot be read, or if ``path`` leads to a pipe, a device or another thing than a file.
    """
    status = require_file(path)
    try:
        return _digest(path, _changed(status), status.st_size)
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror}", where=str(path)) from error


def _changed(status: os.stat_result) -> int:
    """The later of a file's times of modification and status change: tools that copy files may set the first back."""
    return max(status.st_mtime_ns, status.st_ctime_ns)


@functools.cache
def _digest(path: Path, changed_ns: int, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def images_digest(images: Examples, *, labels: bool = True) -> str:
    """SHA-256 over every example's content and label, ``None`` if it has none, in order and without decoding.

    ``labels=False`` reads no label.
    """
    return content_key(
        images=[[images.digest(index), _label(images, index) if labels else None] for index in range(len(images))]
    )


def _label(images: Examples, index: int) -> Any:
    from qplug.core.examples import Annotation

    try:
        label = images.label(index)
    except InputError:
        return None
    return label.content() if isinstance(label, Annotation) else label


def code_digest(module: str) -> str:
    """SHA-256 over the names and bytes of all code of the outermost package or module that contains ``module``.

    A namespace package is skipped: the package within it is hashed. The code is its ``.py`` files and compiled
    extensions, without data files. They are found without imports, and each is read once per process unless it changes.
    A file edited after the process began may differ from the running code. The digest is then unique to this process.

    Raises:
        InputError: the package does not exist, or its source is not in files (built in, zipped, typed at a prompt).
    """
    package = code_package(module)
    files = code_files(package)
    return content_key(files=files, process=[os.getpid(), _STARTED] if edited_since_start(package) else None)


def code_files(package: str) -> dict[str, str]:
    """The digest of every code file of a package, by its path within the package; raises as ``code_digest``."""
    digests = {name: file_digest(path) for name, path in _sources(package).items()}
    if not digests:
        fix = "install the package as files, or add the folder of the file to PYTHONPATH"
        raise InputError(f"there are no source files of '{package}'", fix=fix)
    return digests


def edited_since_start(package: str) -> bool:
    """Whether a code file of a package is newer than this process, which may then run another version of it."""
    return any(_changed(path.stat()) > _STARTED for path in _sources(package).values())


def code_package(module: str) -> str:
    """The outermost package or module that contains ``module`` and is not a namespace package."""
    parts = module.split(".")
    for count in range(1, len(parts)):
        name = ".".join(parts[:count])
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return name
        if spec is None or spec.origin is not None:
            return name
    return module


def _sources(package: str) -> dict[str, Path]:
    """Every code file by its path within the package."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # __main__ has no spec
        spec = None
    source = spec.origin if spec else getattr(sys.modules.get(package), "__file__", None)
    if spec is None or spec.submodule_search_locations is None:
        return {Path(source).name: Path(source)} if source and source.endswith(CODE) else {}
    files: dict[str, Path] = {}
    for folder in map(Path, spec.submodule_search_locations):
        for path in folder.rglob("*"):
            name = path.relative_to(folder)
            counts = path.suffix in CODE and not any(map(name.is_relative_to, WITHOUT_INFLUENCE.get(package, ())))
            if counts and path.is_file():  # an editor's lock is a broken link
                files.setdefault(name.as_posix(), path)  # Python imports the first of several folders of a package
    return files


def fingerprint(state: dict[str, Any]) -> str:
    """SHA-256 over a state dict's names, dtypes, shapes and bytes, in the order of the names, in hexadecimal."""
    import torch

    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.reshape(-1)
        if flat.stride(0) != 1:  # one expanded element is contiguous, whatever its stride
            flat = torch.empty(flat.shape, dtype=flat.dtype).copy_(flat)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256(content: bytes) -> str:
    """SHA-256 of ``content``, in hexadecimal, as ``Examples.digest`` returns it."""
    return hashlib.sha256(content).hexdigest()
