"""Recipes → finished runs: what a run folder already answers is read, the rest is run."""

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
from qplug.core.storage.run_folder import FILES, Run, read_run
from qplug.hooks.registry import Registry, installed
from qplug.pipeline.run_key import run_key_if_known

if TYPE_CHECKING:
    from qplug.core.storage.cache import Cache
    from qplug.recipe import Recipe


@dataclass
class Answers:
    """Runs, and what could not become one.

    Attributes:
        runs: in the order in which they were asked for.
        recipes: content of a run → the recipe that asked for it first.
        failures: one error each, with its place.
    """

    runs: list[Run] = field(default_factory=list)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    failures: list[QplugError] = field(default_factory=list)


def read_all(paths: Sequence[Path]) -> Answers:
    """The runs in ``paths``: run folders, and folders of run folders; each that cannot be read is a failure."""
    answers = Answers()
    for folder in (folder for path in paths for folder in run_folders(path)):
        try:
            answers.runs.append(_read(folder))
        except InputError as error:
            answers.failures.append(error)
    return answers


def run_folders(path: Path) -> list[Path]:
    """``path`` itself where it has a file of a run; else the folders in it, by name, but those being written."""
    inside = [] if any(os.path.lexists(path / name) for name in FILES) else _folders(path)
    return inside or [path]


def _folders(path: Path) -> list[Path]:
    with suppress(OSError):  # whoever reads ``path`` itself says why it cannot be read
        return sorted(Path(entry) for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
    return []


def _read(folder: Path) -> Run:
    """A run whose recipe and images are known to be readable, so that one damaged file cannot take a table down."""
    run = read_run(folder)
    _ = run.recipe, run.evaluation
    return run


def answer(
    recipes: Sequence[Recipe],
    runs: Path,
    *,
    device: str = "cpu",
    cache: Cache | None = None,
    registry: Registry | None = None,
    observers: Sequence[object] = (),
    announce: Callable[[str], None] = lambda _: None,
) -> Answers:
    """A run of every recipe; one that fails does not keep the others from running.

    Args:
        recipes: validated.
        runs: the folder that holds finished runs and receives new ones.
        device, registry, cache, observers: as ``qplug.run`` takes them.
        announce: is told what will be run, and before each run which it is.

    Raises:
        InputError: a launcher started several processes.
    """
    if launched().count > 1:
        raise InputError(
            f"comparisons are made by one process, and {launched().count} were started",
            fix="start only 'qplug run' by a launcher; 'qplug compare' reads the folders that it wrote",
        )
    registry = registry or installed()
    known = dict(finished(runs))
    wanted = [(recipe, run_key_if_known(recipe, registry, device) or _unknown()) for recipe in recipes]
    keys = {key for _, key in wanted}
    missing = len(keys - known.keys())
    announce(f"{len(keys)} runs asked for: {len(keys) - missing} finished, {missing} to run in {runs}")
    answers, done = Answers(), 0
    for recipe, key in wanted:
        try:
            if key not in known:
                done += 1
                announce(f"[{done}/{missing}] {recipe.name}, seed {recipe.seed}")
                target = runs / _folder_name(recipe, key)
                if not _holds(target, key):  # another process may have been faster
                    _run(recipe, target, key, device, cache, registry, observers)
                known[key] = target
            answers.runs.append(_read(known[key]))
            answers.recipes.setdefault(key, recipe)
        except Exception as error:  # of memory that ran out on the tenth recipe, the eleventh knows nothing
            answers.failures.append(_failure(recipe, error))
    return answers


def _failure(recipe: Recipe, error: Exception) -> QplugError:
    """The error as one of ours, with the recipe in its place."""
    if not isinstance(error, QplugError):
        what, cause = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", error
        error = QplugError(what, fix="'qplug --traceback run …' with this recipe and seed shows where it came from")
        error.__cause__ = cause
    error.where = f"{recipe.name}, seed {recipe.seed}" + (f": {error.where}" if error.where else "")
    return error


def finished(runs: Path) -> Iterator[tuple[str, Path]]:
    """(content, folder) of every whole run in ``runs``; of two with one content, the later name."""
    for folder in _folders(runs):
        with suppress(InputError):  # whoever asks for this folder by name is told why; here it answers nothing
            key = read_run(folder).lock.get("run_key")
            if key:
                yield key, folder


def _holds(folder: Path, key: str) -> bool:
    with suppress(InputError):
        return bool(read_run(folder).lock.get("run_key") == key)
    return False


def _unknown() -> str:
    """In the place of a content that cannot be told, which no other recipe may share; a run says what is wrong."""
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
    """Run ``recipe`` into ``target``, unless another process does so first; a folder in the way is named.

    Raises:
        QplugError: the run's own, or ``target`` exists and does not hold the run.
    """
    if os.path.lexists(target):
        raise InputError(f"is in the way of this run: {_inside(target)}", where=str(target), fix="move or remove it")

    from qplug.pipeline.run import run  # torch waits until something must be run

    try:
        run(recipe, out=target, device=device, cache=cache, registry=registry, observers=observers)
    except InputError:
        if not _holds(target, key):
            raise


def _inside(target: Path) -> str:
    try:
        read_run(target)
    except InputError as error:
        return error.what
    return "it holds one that answers for no other"
