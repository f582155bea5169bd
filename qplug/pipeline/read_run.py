"""Read a run folder: every file is checked against ``lock.json`` before its content is used."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from qplug.core.errors import InputError
from qplug.core.storage.hashing import file_digest
from qplug.core.storage.plain_file import require_file
from qplug.core.storage.read_json import read_json
from qplug.core.storage.run_folder import AGAIN, FILES, FORMAT
from qplug.core.storage.run_schema import Lock, Metrics, digest_of, problem_of, validated
from qplug.core.text import listed
from qplug.quantization.plan_record import check_plan
from qplug.recipe.stored import read_stored_recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

ONE_PIECE = f"a run folder is one piece: put the original file back, or {AGAIN}"
PREDICTIONS = ("labels", "quantized.top1")
SCORES = ("quantized.by_example",)
"""Tensors of ``evaluation.safetensors`` that comparisons read, one number for each example: a label and a prediction,
or a score."""


@dataclass(frozen=True)
class Run:
    """A run folder that was read. Its larger files are read, checked and validated at first use.

    ``qplug.pipeline.weights`` reads its weights.
    """

    folder: Path
    lock: Lock
    metrics: dict[str, Any]

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe."""
        return read_stored_recipe(self.checked("recipe.yaml"))

    @cached_property
    def plan(self) -> dict[str, Any]:
        """The plan, as returned by ``Plan.to_dict``."""
        path = self.checked("plan.json")
        value = read_json(path)
        try:
            check_plan(value)
        except InputError as error:
            raise InputError(error.what, where=str(path), fix=error.fix or AGAIN) from None
        return value

    @cached_property
    def evaluation(self) -> dict[str, NDArray[Any]]:
        """The results of every evaluation example, (N, …) each, from ``evaluation.safetensors``."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = self.checked("evaluation.safetensors")
        try:
            tensors: dict[str, NDArray[Any]] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"the file cannot be read: {error}", where=str(path), fix=AGAIN) from error
        count = self.metrics["images.evaluation"]
        for name in SCORES if SCORES[0] in tensors else PREDICTIONS:
            if name not in tensors or tensors[name].shape != (count,):
                received = "none" if name not in tensors else f"shape {tensors[name].shape}"
                what = f"expected {count} values of '{name}', as metrics.json says, received {received}"
                raise InputError(what, where=str(path), fix=AGAIN)
        return tensors

    @property
    def score_key(self) -> str:
        """The name of the metric that comparisons show: ``top1`` unless the task has another."""
        return str(self.metrics.get("score", "top1"))

    @property
    def score_title(self) -> str:
        """The score in the words of tables."""
        return str(self.metrics.get("score_title", "top-1"))

    @property
    def score_is_share(self) -> bool:
        """Whether the score is a fraction in 0 … 1; the number of a caller's own function may be anything."""
        return bool(self.metrics.get("score_unit", "fraction") == "fraction")

    @property
    def score(self) -> float:
        """The quantized model's score."""
        return float(self.metrics[f"quantized.{self.score_key}"])

    @property
    def is_right(self) -> NDArray[Any] | None:
        """(N,) bool, whether each prediction is right; ``None`` for a task whose predictions are not right or wrong."""
        rows = self.evaluation
        return None if SCORES[0] in rows else rows["quantized.top1"] == rows["labels"]

    @property
    def by_example(self) -> NDArray[Any]:
        """(N,) float64: the score of each example, NaN where it has none; 0 or 1 for a right or wrong prediction."""
        import numpy as np

        right = self.is_right
        values: NDArray[Any] = np.asarray(self.evaluation[SCORES[0]] if right is None else right, dtype=np.float64)
        return values

    def checked(self, name: str) -> Path:
        """The path of a file; raises ``InputError`` if it is not the file that the run wrote."""
        path, record = self.folder / name, self.lock.files[name]
        size = require_file(path).st_size
        if size != record.bytes or file_digest(path) != record.sha256:
            what = f"is not the file that the run wrote: its {'size' if size != record.bytes else 'content'} differs"
            raise InputError(f"{what} from lock.json", where=str(path), fix=ONE_PIECE)
        return path

    def check_files(self) -> list[InputError]:
        """An error for each file that is not the one that the run wrote."""
        errors = []
        for name in self.lock.files:
            try:
                self.checked(name)
            except InputError as error:
                errors.append(error)
        return errors

    def added(self) -> list[str]:
        """Names of files in the folder that the run did not write."""
        return sorted(path.name for path in self.folder.iterdir() if path.name not in {*self.lock.files, "lock.json"})

    def check(self) -> None:
        """Raise one ``InputError`` for all files that are not those that the run wrote."""
        errors = self.check_files()
        if len(errors) == 1:
            raise errors[0]
        if errors:
            text = "; ".join(f"{Path(error.where).name} {error.what}" for error in errors)
            raise InputError(text, where=str(self.folder), fix=ONE_PIECE)


def read_run(folder: str | Path) -> Run:
    """Read a run folder; raises ``InputError`` if it is not one, is incomplete, or has an unsupported format."""
    folder = Path(folder)
    if not os.path.isdir(folder):  # unlike Path.is_dir, it does not raise for a path without access
        what = "is a file, not a run folder" if os.path.lexists(folder) else "there is no such run folder"
        raise InputError(what, where=str(folder))
    lock = _read_lock(folder)
    missing = [name for name in sorted({*FILES, *lock.files} - {"lock.json"}) if not os.path.lexists(folder / name)]
    if missing:
        what = f"is not a whole run folder: {listed(missing, 6)} missing"
        raise InputError(what, where=str(folder), fix=AGAIN)
    run = Run(folder, lock, {})
    path = run.checked("metrics.json")
    metrics = read_json(path)
    try:
        Metrics.model_validate(metrics)
    except ValidationError as error:
        raise InputError(f"holds no metrics of a run: {problem_of(error)}", where=str(path), fix=AGAIN) from None
    return Run(folder, lock, metrics)


def _read_lock(folder: Path) -> Lock:
    path = folder / "lock.json"
    if not os.path.lexists(path):
        raise InputError("is not a run folder: lock.json missing", where=str(folder))
    values = read_json(path)
    if values.get("format") != FORMAT:
        raise _other_format(values, path)
    if values.get("digest") != _digest(values):
        what = "was changed or damaged after the run: its content does not have the digest that it states"
        raise InputError(what, where=str(path), fix=ONE_PIECE)
    lock = validated(Lock, values, path)
    unlisted = [name for name in FILES if name != "lock.json" and name not in lock.files]
    if unlisted:
        raise InputError(f"lists no digest of {listed(unlisted, 6)}", where=str(path), fix=AGAIN)
    outside = [name for name in lock.files if name in ("", "..") or Path(name).name != name]
    if outside:
        raise InputError(f"expected names of files in the folder, received {outside[0]!r}", where=str(path), fix=AGAIN)
    return lock


def _digest(values: dict[str, Any]) -> str | None:
    try:
        return digest_of(values)
    except (TypeError, ValueError, RecursionError):
        return None


def _other_format(values: dict[str, Any], path: Path) -> InputError:
    received, version = values.get("format"), values.get("qplug")
    by = f", of qplug {version}" if isinstance(version, str) else ""
    what = f"a run folder of format {FORMAT} was expected, received {received!r}{by}"
    if isinstance(received, int) and received < FORMAT:
        what += "; formats before 5 hold no digests, so it cannot be known whether the folder is one piece"
    fix = f"run its recipe again: qplug run {path.parent / 'recipe.yaml'} --out NEW_FOLDER"
    return InputError(what, where=str(path), fix=fix)
