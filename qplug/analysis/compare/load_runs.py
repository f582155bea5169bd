"""Runs of recipes: a finished run is read, and a recipe without a finished run is run."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qplug.core.distributed import launched
from qplug.core.errors import InputError, QplugError
from qplug.core.storage.run_folder import FILES
from qplug.hooks.registry import Registry, installed
from qplug.pipeline.read_run import Run, read_run
from qplug.pipeline.run_key import run_key_if_known

if TYPE_CHECKING:
    from qplug.core.storage.cache import Cache
    from qplug.recipe import Recipe


@dataclass
class LoadedRuns:
    """Runs, and the errors of those that failed.

    Attributes:
        runs: runs in the order of the request.
        recipes: key of a run → the first recipe that requested it.
        failures: one error for each run that failed, with its place.
    """

    runs: list[Run] = field(default_factory=list)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    failures: list[QplugError] = field(default_factory=list)


def read_all(paths: Sequence[Path]) -> LoadedRuns:
    """Read run folders, and folders of run folders; a folder that cannot be read is a failure."""
    loaded = LoadedRuns()
    for folder in (folder for path in paths for folder in run_folders(path)):
        try:
            loaded.runs.append(_read(folder))
        except InputError as error:
            loaded.failures.append(error)
        except Exception as error:  # such as lack of memory or a denied access: the other folders may still be read
            what = f"cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            loaded.failures.append(InputError(what, where=str(folder)))
    return loaded


def run_folders(path: Path) -> list[Path]:
    """``path`` itself if it has a file of a run; else its subfolders by name, without unfinished (hidden) ones."""
    subfolders = [] if any(os.path.lexists(path / name) for name in FILES) else _folders(path)
    return subfolders or [path]


def _folders(path: Path) -> list[Path]:
    with suppress(OSError):  # reading ``path`` itself reports why it cannot be read
        return sorted(Path(entry) for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
    return []


def _read(folder: Path) -> Run:
    """Read a run with its recipe and images, so that a damaged file fails here and not in a table.

    Every file is checked, those that no table reads too: a run folder is one piece.
    """
    run = read_run(folder)
    run.check()
    _ = run.recipe, run.evaluation
    return run


def run_all(
    recipes: Sequence[Recipe],
    runs: Path,
    *,
    device: str = "cpu",
    cache: Cache | None = None,
    registry: Registry | None = None,
    observers: Sequence[object] = (),
    announce: Callable[[str], None] = lambda _: None,
    before_first: Callable[[], None] = lambda: None,
) -> LoadedRuns:
    """A run of every recipe. A run that fails does not stop the others.

    Args:
        recipes: validated recipes.
        runs: folder of run folders, for reading and writing.
        device, registry, cache, observers: arguments of ``qplug.run``.
        announce: called with a line for the user, first in total and then before each run.
        before_first: called once, before the first run that is not finished.

    Raises:
        InputError: a launcher started several processes.
    """
    if launched().count > 1:
        raise InputError(
            f"comparisons are made by one process, received {launched().count}",
            fix="launch only 'qplug run' with several processes; 'qplug compare' then reads its run folders",
        )
    registry = registry or installed()
    folders = dict(finished(runs))  # of two runs with one key, the later name
    requests = [(recipe, run_key_if_known(recipe, registry, device) or _unique_key()) for recipe in recipes]
    keys = {key for _, key in requests}
    missing = len(keys - folders.keys())
    announce(f"{len(keys)} runs: {len(keys) - missing} finished, {missing} to run in {runs}")
    loaded, done = LoadedRuns(), 0
    for recipe, key in requests:
        try:
            if key not in folders:
                if not done:
                    before_first()
                done += 1
                announce(f"[{done}/{missing}] {recipe.name}, seed {recipe.seed}")
                target = runs / _folder_name(recipe, key)
                if not _holds(target, key):  # another process may have finished it
                    _run(recipe, target, key, device, cache, registry, observers)
                folders[key] = target
            loaded.runs.append(_read(folders[key]))
            loaded.recipes.setdefault(key, recipe)
        except Exception as error:  # such as lack of memory: the next recipes may still succeed
            loaded.failures.append(_failure(recipe, error))
    return loaded


def _failure(recipe: Recipe, error: Exception) -> QplugError:
    """The error as a ``QplugError``, with the recipe and the seed as its place."""
    if not isinstance(error, QplugError):
        what, cause = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", error
        error = QplugError(what, fix="'qplug --traceback run …' with this recipe and seed shows the traceback")
        error.__cause__ = cause
    error.where = f"{recipe.name}, seed {recipe.seed}" + (f": {error.where}" if error.where else "")
    return error


def finished(runs: Path) -> Iterator[tuple[str, Path]]:
    """(key, folder) of every complete run in ``runs``, by name."""
    for folder in _folders(runs):
        with suppress(InputError):  # an incomplete run folder counts as no run
            key = read_run(folder).lock.run_key
            if key:
                yield key, folder


def _holds(folder: Path, key: str) -> bool:
    with suppress(InputError):
        return bool(read_run(folder).lock.run_key == key)
    return False


def _unique_key() -> str:
    """A key for a recipe whose key cannot be computed, shared with no other recipe; its run reports the reason."""
    return f"new-{secrets.token_hex(4)}"


def _folder_name(recipe: Recipe, key: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', recipe.name)[:80]}-s{recipe.seed}-{key[:12]}"


def _run(
    recipe: Recipe,
    target: Path,
    key: str,
    device: str,
    cache: Cache | None,
    registry: Registry,
    observers: Sequence[object],
) -> None:
    """Run ``recipe`` into ``target``, unless another process does so first.

    Raises:
        QplugError: the run failed, or ``target`` exists and holds something else.
    """
    if os.path.lexists(target):
        raise InputError(f"this run cannot be written: {_content(target)}", where=str(target), fix="move or remove it")

    from qplug.pipeline.run import run  # imported late: reading runs needs no torch

    try:
        run(recipe, out=target, device=device, cache=cache, registry=registry, observers=observers)
    except InputError:
        if not _holds(target, key):
            raise


def _content(target: Path) -> str:
    try:
        read_run(target)
    except InputError as error:
        return error.what
    return "the folder holds another run"
