"""From runs to rows (a recipe on a model, all its seeds) and groups (rows that may be compared), with ties."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from qplug.analysis.compare.noise import Difference, difference, letters
from qplug.core.storage.run_folder import Run
from qplug.pipeline.run_key import WITHOUT_INFLUENCE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qplug.recipe import Recipe

ORIGIN = ("checkpoint_path", "path", "pretrained", "revision")
"""Keys of a model that say where its weights lie; which weights they are, their hash says."""
SHOWN = 4
"""Values by which rows of one name are told apart, at most."""


@dataclass(frozen=True)
class Row:
    """One recipe on one model: its runs, one a seed, in the order of the seeds."""

    name: str
    runs: tuple[Run, ...]
    paper: Mapping[str, Any] | None = None
    """What its recipe says that it reproduces."""

    @property
    def seeds(self) -> list[int]:
        """Of the runs."""
        return [run.recipe["seed"] for run in self.runs]

    def values(self, key: str) -> list[float]:
        """A metric of every run; what a run lacks (an infinite SQNR is ``null``) is left out."""
        return [run.metrics[key] for run in self.runs if run.metrics.get(key) is not None]

    def mean(self, key: str) -> float | None:
        """Mean of a metric over seeds."""
        values = self.values(key)
        return fmean(values) if values else None

    def spread(self, key: str) -> float | None:
        """Standard deviation of a metric over seeds, ``None`` for one seed."""
        values = self.values(key)
        return stdev(values) if len(values) > 1 else None

    @property
    def model(self) -> str:
        """The model, as a recipe names it."""
        config = self.runs[0].recipe["model"]
        place = PurePath(config.get("path") or "").name
        return str(config.get("name") or config.get("target") or place or config.get("source"))

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """(seeds, images) whether the quantized model was right."""
        import numpy as np

        return np.stack([run.evaluation["quantized.top1"] == run.evaluation["labels"] for run in self.runs])

    def against(self, other: Row) -> Difference:
        """Top-1 of this row minus the other's, on the seeds that both have, or on as many as the fewer has."""
        shared = [seed for seed in self.seeds if seed in other.seeds]
        if shared:
            return difference(*(row.correct[[row.seeds.index(seed) for seed in shared]] for row in (self, other)))
        count = min(len(self.runs), len(other.runs))
        return difference(self.correct[:count], other.correct[:count])


@dataclass(frozen=True)
class Group:
    """Rows of one model, measured on the same images, so that every figure may be held against every other."""

    model: str
    rows: tuple[Row, ...]

    @property
    def images(self) -> int:
        """How many images measured them."""
        return int(self.rows[0].runs[0].metrics["images.evaluation"])

    @property
    def evaluation(self) -> str:
        """SHA-256 of these images, their labels and their order."""
        return str(self.rows[0].runs[0].lock["hashes"]["evaluation_images"])

    @property
    def float_top1(self) -> float:
        """Of the float model."""
        return float(self.rows[0].runs[0].metrics["float.top1"])

    @cached_property
    def ties(self) -> list[str]:
        """Letters, one text a row: rows that share one differ by no more than noise."""
        return letters(len(self.rows), lambda i, j: self.rows[i].against(self.rows[j]).is_noise)


def group(runs: Sequence[Run], recipes: Mapping[str, Recipe] | None = None) -> list[Group]:
    """Groups in the order in which they first appear, rows likewise.

    Args:
        runs: finished ones; those that differ in the seed alone become one row.
        recipes: content of a run → the recipe that asked for it, whose name and paper may be others than the run's own.
    """
    recipes = recipes or {}
    members: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        measured = json.dumps([_model(run), run.lock["hashes"]["evaluation_images"]], sort_keys=True)
        setting = _setting(run, recipes)
        members.setdefault(measured, {}).setdefault(json.dumps(setting, sort_keys=True), []).append(run)
    found = [
        [_row(tuple(sorted(_distinct(some), key=_seed)), recipes) for some in rows.values()]
        for rows in members.values()
    ]
    facts = [_model(rows[0].runs[0]) for rows in found]
    names = told_apart([rows[0].model for rows in found], facts, [rows[0].model for rows in found])
    return [Group(name, _named_apart(rows, recipes)) for name, rows in zip(names, found, strict=True)]


def _model(run: Run) -> dict[str, Any]:
    """What a float model and its inputs are, wherever the weights lie."""
    config = {key: value for key, value in run.recipe["model"].items() if key not in ORIGIN}
    return {**flat({"model": config}), "weights": run.lock["hashes"]["model"][:8]}


def _setting(run: Run, recipes: Mapping[str, Recipe]) -> dict[str, Any]:
    """What makes a row, beside the model and the evaluation images that its group has.

    A run knows images by their content: the one of ``recipes`` that it answers may find them elsewhere.
    """
    recipe = {key: value for key, value in run.recipe.items() if key not in (*WITHOUT_INFLUENCE, "seed", "model")}
    asked = recipes.get(run.lock["run_key"])
    data = recipe["data"] if asked is None else asked.dump()["data"]
    recipe["data"] = {key: value for key, value in data.items() if key != "evaluation"}
    code = {package: digest[:8] for package, digest in run.lock["code"].items()}
    device = run.lock["machine"]["device"].partition(":")[0]
    return flat({**recipe, "code": code, "packages": run.lock["packages"], "device": device})


def _seed(run: Run) -> int:
    return int(run.recipe["seed"])


def _distinct(runs: Sequence[Run]) -> list[Run]:
    """One run a seed: the same recipe run twice says the same twice."""
    return list({_seed(run): run for run in runs}.values())


def _row(runs: tuple[Run, ...], recipes: Mapping[str, Recipe]) -> Row:
    asked = recipes.get(runs[0].lock["run_key"])
    recipe = asked.dump() if asked else runs[0].recipe
    return Row(recipe.get("name") or runs[0].folder.name, runs, recipe.get("paper"))


def _named_apart(rows: Sequence[Row], recipes: Mapping[str, Recipe]) -> tuple[Row, ...]:
    """Bits are no part of a name: they have a column of their own."""
    alike = [(row.name, _bits(row, "weights"), _bits(row, "activations")) for row in rows]
    names = told_apart([row.name for row in rows], [_setting(row.runs[0], recipes) for row in rows], alike)
    return tuple(replace(row, name=name) for row, name in zip(rows, names, strict=True))


def _bits(row: Row, side: str) -> str:
    """As a table shows them."""
    return f"{row.mean(f'bits.{side}_mean'):.2f}"


def told_apart(names: Sequence[str], facts: Sequence[Mapping[str, Any]], alike: Sequence[Hashable]) -> list[str]:
    """The names, where others are ``alike`` with the facts in which they differ."""
    result = []
    for name, mine, key in zip(names, facts, alike, strict=True):
        others = [other for other, its in zip(facts, alike, strict=True) if its == key]
        absent = _absent(others)
        differ = sorted(
            {absent.get(k, k) for other in others for k in mine.keys() | other.keys() if mine.get(k) != other.get(k)}
        )
        words = [f"{k}={_value(mine, k)}" for k in differ[:SHOWN]] + ["…"] * (len(differ) > SHOWN)
        result.append(f"{name} ({', '.join(words)})" if words else name)
    return result


def _absent(facts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Key of a section → the section, where it is ``None`` in some: whether it is there says more than all its keys."""
    keys = {key for its in facts for key in its}
    sections = {key for its in facts for key, value in its.items() if value is None}
    outermost_last = sorted(sections, key=len, reverse=True)
    return {key: section for section in outermost_last for key in keys if key.startswith(f"{section}.")}


def _value(facts: Mapping[str, Any], key: str) -> str:
    """A fact, or that a section is given."""
    return "given" if any(name.startswith(f"{key}.") for name in facts) else str(facts.get(key))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of mappings and lists as dotted keys, as ``--set`` writes them."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not isinstance(value, (dict, list)) or not value:
        return {prefix.rstrip("."): value}
    return {key: leaf for step, child in items for key, leaf in flat(child, f"{prefix}{step}.").items()}
