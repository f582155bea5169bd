"""Rows (a recipe on a model, with all its seeds) and groups of comparable rows, with significance letters."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from qplug.analysis.compare.noise import SeedDifference, difference, letters
from qplug.core.chance import Chance
from qplug.hooks.offers import RESERVED
from qplug.pipeline.read_run import Run
from qplug.pipeline.run_key import WITHOUT_INFLUENCE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qplug.recipe import Recipe

LOCATION_KEYS = ("checkpoint_path", "path", "pretrained", "revision")
"""Keys of a model that locate its weights. The hash of the weights identifies them."""
MOST_DIFFERENCES = 4
"""Differing values in the name of a row, at most."""


@dataclass(frozen=True)
class ComparisonRow:
    """One recipe on one model: its runs, one for each seed, in the order of the seeds."""

    name: str
    runs: tuple[Run, ...]
    paper: Mapping[str, Any] | None = None
    """The ``paper`` section of the recipe: the published figures that it reproduces."""

    @property
    def seeds(self) -> list[int]:
        """Seeds of the runs."""
        return [run.recipe["seed"] for run in self.runs]

    def values(self, key: str) -> list[float]:
        """A metric of every run. Missing values are left out; an infinite SQNR is missing."""
        return [run.metrics[key] for run in self.runs if run.metrics.get(key) is not None]

    def mean(self, key: str) -> float | None:
        """Mean of a metric over seeds; ``None`` if every run lacks it."""
        values = self.values(key)
        return fmean(values) if values else None

    def spread(self, key: str) -> float | None:
        """Standard deviation of a metric over seeds, ``None`` for fewer than two values."""
        values = self.values(key)
        return stdev(values) if len(values) > 1 else None

    @property
    def plugin_metrics(self) -> list[str]:
        """Names of the metrics that plugins added, ``<entry point>.<metric>``."""
        names = dict.fromkeys(key for run in self.runs for key in run.metrics)
        return [name for name in names if "." in name and name.partition(".")[0] not in RESERVED]

    @property
    def seconds(self) -> float | None:
        """Mean time of the runs without the cache, in seconds: what was spent and what the cache saved."""
        times = [
            run.metrics["seconds.total"] + (run.metrics.get("cache.seconds_saved") or 0.0)
            for run in self.runs
            if run.metrics.get("seconds.total") is not None
        ]
        return fmean(times) if times else None

    @property
    def model(self) -> str:
        """The model by its name in the recipe."""
        config = self.runs[0].recipe["model"]
        folder = PurePath(config.get("path") or "").name
        return str(config.get("name") or config.get("target") or folder or config.get("source"))

    @property
    def score_key(self) -> str:
        """The name of the metric that tells the rows apart, such as ``top1``; that of the model's task."""
        return self.runs[0].score_key

    @cached_property
    def by_example(self) -> NDArray[np.float64]:
        """(seeds, images): the quantized model's score of each image, 0 or 1 where a prediction is right or wrong."""
        import numpy as np

        return np.stack([run.by_example for run in self.runs])

    def against(self, other: ComparisonRow) -> SeedDifference:
        """The mean score by example minus the other's, on their common seeds; without any, on the first of both."""
        shared = [seed for seed in self.seeds if seed in other.seeds]
        if shared:
            return difference(*(row.by_example[[row.seeds.index(seed) for seed in shared]] for row in (self, other)))
        count = min(len(self.runs), len(other.runs))
        return difference(self.by_example[:count], other.by_example[:count])


@dataclass(frozen=True)
class Group:
    """Rows of one model on the same evaluation images, whose figures are comparable."""

    model: str
    rows: tuple[ComparisonRow, ...]

    @property
    def images(self) -> int:
        """Number of evaluation images."""
        return int(self.rows[0].runs[0].metrics["images.evaluation"])

    @property
    def evaluation(self) -> str:
        """SHA-256 of the evaluation images, their labels and their order."""
        return str(self.rows[0].runs[0].lock.hashes.evaluation_images)

    @property
    def score_title(self) -> str:
        """The score in the words of tables, such as ``top-1``."""
        return self.rows[0].runs[0].score_title

    @property
    def score_is_share(self) -> bool:
        """Whether the score is a fraction in 0 … 1; the number of a caller's own function may be anything."""
        return self.rows[0].runs[0].score_is_share

    @property
    def float_score(self) -> float:
        """The score of the float model."""
        run = self.rows[0].runs[0]
        return float(run.metrics[f"float.{run.score_key}"])

    @property
    def float_at_chance(self) -> bool:
        """Whether the float model is no better than chance, so that no accuracy of the group says anything.

        ``False`` for runs of a version that did not measure it, and for tasks without a chance level.
        """
        expected = self.rows[0].runs[0].metrics.get("float.chance")
        if expected is None:
            return False
        return Chance(round(self.float_score * self.images), self.images, float(expected)).is_likely

    @cached_property
    def ties(self) -> list[str]:
        """Letters of each row: rows with the same letter do not differ significantly.

        Empty where the score has no values by example: a caller's own number, or one on calibration data.
        """
        if not self.images or not self.score_is_share:
            return [""] * len(self.rows)
        return letters(len(self.rows), lambda i, j: self.rows[i].against(self.rows[j]).is_noise)


def group(runs: Sequence[Run], recipes: Mapping[str, Recipe] | None = None) -> list[Group]:
    """Groups and their rows, in the order of their first run.

    Args:
        runs: finished runs; runs that differ only in the seed become one row.
        recipes: key of a run → the recipe that requested it; its name and paper replace those of the run.
    """
    recipes = recipes or {}
    members: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        images = [run.lock.hashes.evaluation_images, run.metrics["images.evaluation"]]
        measured = json.dumps([_model(run), *images, run.score_key], sort_keys=True)
        setting = _setting(run, recipes)
        members.setdefault(measured, {}).setdefault(json.dumps(setting, sort_keys=True), []).append(run)
    groups = [
        [_row(tuple(sorted(_one_for_each_seed(same), key=_seed)), recipes) for same in rows.values()]
        for rows in members.values()
    ]
    models = [rows[0].model for rows in groups]
    names = distinct_names(models, [_model(rows[0].runs[0]) for rows in groups], models)
    return [Group(name, _with_distinct_names(rows, recipes)) for name, rows in zip(names, groups, strict=True)]


def _model(run: Run) -> dict[str, Any]:
    """Identity of a float model and its preprocessing, independent of where the weights are stored."""
    config = {key: value for key, value in run.recipe["model"].items() if key not in LOCATION_KEYS}
    return {**flat({"model": config}), "weights": run.lock.hashes.model[:8]}


def _setting(run: Run, recipes: Mapping[str, Recipe]) -> dict[str, Any]:
    """Everything that separates rows within a group, which has one model and one set of evaluation images.

    A run identifies images by their content. The recipe that requested it may read them from another folder.
    """
    recipe = {key: value for key, value in run.recipe.items() if key not in (*WITHOUT_INFLUENCE, "seed", "model")}
    requested = recipes.get(run.lock.run_key or "")
    data = recipe["data"] if requested is None else requested.dump()["data"]
    recipe["data"] = {key: value for key, value in data.items() if key != "evaluation"}
    code = {package: record.digest[:8] for package, record in run.lock.code.items()}
    device = run.lock.machine.device.partition(":")[0]
    return flat({**recipe, "code": code, "packages": run.lock.packages, "device": device})


def _seed(run: Run) -> int:
    return int(run.recipe["seed"])


def _one_for_each_seed(runs: Sequence[Run]) -> list[Run]:
    """One run for each seed: repeating a run adds no information."""
    return list({_seed(run): run for run in runs}.values())


def _row(runs: tuple[Run, ...], recipes: Mapping[str, Recipe]) -> ComparisonRow:
    requested = recipes.get(runs[0].lock.run_key or "")
    recipe = requested.dump() if requested else runs[0].recipe
    return ComparisonRow(recipe.get("name") or runs[0].folder.name, runs, recipe.get("paper"))


def _with_distinct_names(rows: Sequence[ComparisonRow], recipes: Mapping[str, Recipe]) -> tuple[ComparisonRow, ...]:
    """The rows with distinct names. Bits need no place in a name: they have a column of their own."""
    keys = [(row.name, _bits(row, "weights"), _bits(row, "activations")) for row in rows]
    names = distinct_names([row.name for row in rows], [_setting(row.runs[0], recipes) for row in rows], keys)
    return tuple(replace(row, name=name) for row, name in zip(rows, names, strict=True))


def _bits(row: ComparisonRow, side: str) -> str:
    """Mean bits with the precision of the tables."""
    return f"{row.mean(f'bits.{side}_mean'):.2f}"


def distinct_names(names: Sequence[str], facts: Sequence[Mapping[str, Any]], keys: Sequence[Hashable]) -> list[str]:
    """The names; those with the same key get the facts in which they differ, in brackets."""
    result = []
    for name, own, key in zip(names, facts, keys, strict=True):
        others = [other for other, other_key in zip(facts, keys, strict=True) if other_key == key]
        absent = _absent(others)
        differ = sorted(
            {absent.get(k, k) for other in others for k in own.keys() | other.keys() if own.get(k) != other.get(k)}
        )
        words = [f"{k}={_value(own, k)}" for k in differ[:MOST_DIFFERENCES]] + ["…"] * (len(differ) > MOST_DIFFERENCES)
        result.append(f"{name} ({', '.join(words)})" if words else name)
    return result


def _absent(facts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Key inside a section → the section, if the section is ``None`` in some of ``facts``."""
    keys = {key for values in facts for key in values}
    sections = {key for values in facts for key, value in values.items() if value is None}
    outermost_last = sorted(sections, key=len, reverse=True)
    return {key: section for section in outermost_last for key in keys if key.startswith(f"{section}.")}


def _value(facts: Mapping[str, Any], key: str) -> str:
    """The value of a key; ``given`` for a section."""
    return "given" if any(name.startswith(f"{key}.") for name in facts) else str(facts.get(key))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of mappings and lists as one mapping with the dotted keys of ``--set``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not isinstance(value, (dict, list)) or not value:
        return {prefix.rstrip("."): value}
    return {key: leaf for step, child in items for key, leaf in flat(child, f"{prefix}{step}.").items()}
