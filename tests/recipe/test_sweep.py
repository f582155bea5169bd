"""Sweeps: every combination is a recipe, and problems have their place."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_toys import registry

from qplug.core.errors import RecipeError
from qplug.recipe.sweep import is_sweep, load_sweep

RECIPE = """
version: 1
model: {source: named, name: small}
data: {calibration: {source: images}, evaluation: {source: images}}
quantize: {weights: {bits: 4}, activations: {bits: 4}}
techniques: [{use: toy.ranges}]
"""
SWEEP = """
version: 1
title: A table
seeds: [0, 5]
set: {quantize.weights.bits: 8, quantize.activations.bits: 8}
models:
  - {model.name: one}
  - {model.name: two}
recipes:
  - {recipe: toy.yaml}
  - recipe: toy.yaml
    name: narrow
    set: {quantize.weights.bits: 3, techniques.toy.ranges.percentile: 99.0}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.yaml").write_text(RECIPE)
    return tmp_path


def load(folder: Path, text: str, *overrides: str):
    (folder / "sweep.yaml").write_text(text)
    return load_sweep(folder / "sweep.yaml", overrides, registry())


def test_every_combination_is_a_recipe(folder: Path) -> None:
    title, recipes = load(folder, SWEEP)
    assert title == "A table"
    found = [(r.model.name, r.name, r.seed, r.quantize.weights.bits, r.quantize.activations.bits) for r in recipes]
    assert found == [
        *(("one", "toy", 0, 8, 8), ("one", "toy", 5, 8, 8), ("one", "narrow", 0, 3, 8), ("one", "narrow", 5, 3, 8)),
        *(("two", "toy", 0, 8, 8), ("two", "toy", 5, 8, 8), ("two", "narrow", 0, 3, 8), ("two", "narrow", 5, 3, 8)),
    ]
    assert [r.techniques[0].percentile for r in recipes[:4]] == [99.9, 99.9, 99.0, 99.0]


def test_the_command_line_wins(folder: Path) -> None:
    _, recipes = load(folder, SWEEP, "quantize.weights.bits=5", "model.name=three")
    assert {(r.model.name, r.quantize.weights.bits) for r in recipes} == {("three", 5)}


def test_a_seed_that_is_set_wins_over_the_seeds(folder: Path) -> None:
    """It would otherwise be taken and ignored."""
    assert [r.seed for r in load(folder, SWEEP, "seed=7")[1]] == [7] * 4
    _, recipes = load(folder, SWEEP.replace("quantize.weights.bits: 3", "seed: 3, quantize.weights.bits: 3"))
    assert [(r.name, r.seed) for r in recipes[:3]] == [("toy", 0), ("toy", 5), ("narrow", 3)]
    found = load_sweep(folder / "sweep.yaml", (), registry(), seeds=(1, 2))[1]
    assert [r.seed for r in found] == [1, 2] * 4


def test_one_row_does_not_leak_into_the_next(folder: Path) -> None:
    text = SWEEP.replace(
        "set: {quantize.weights.bits: 8, quantize.activations.bits: 8}", "set: {quantize.weights: {bits: 8}}"
    )
    _, recipes = load(folder, text)
    assert [r.quantize.weights.bits for r in recipes[:4]] == [8, 8, 3, 3]
    assert [r.quantize.weights.bits for r in recipes[4:]] == [8, 8, 3, 3]


def test_sweeps_and_recipes_are_distinguished(folder: Path) -> None:
    (folder / "sweep.yaml").write_text(SWEEP)
    assert is_sweep(folder / "sweep.yaml")
    assert not is_sweep(folder / "toy.yaml")
    assert not is_sweep(folder / "nowhere.yaml")


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("title: A table", "titel: A table", "sweep.yaml:3:1", "did you mean 'title'"),
        ("seeds: [0, 5]", "seeds: []", "sweep.yaml:4:8", "at least 1 item"),
        ("seeds: [0, 5]", "seeds: [0, -1]", "sweep.yaml:4:12", "at least 0"),
        ("seeds: [0, 5]", "seeds: [4294967296]", "sweep.yaml:4:9", "at most 4294967295"),
        ("models:\n  - {model.name: one}\n  - {model.name: two}", "models: []", "sweep.yaml:6:9", "at least 1 item"),
        ("- {recipe: toy.yaml}", "- {recipe: sweep.yaml}", "sweep.yaml:10:14", "expected a recipe, received a sweep"),
        ("- {recipe: toy.yaml}", "- {recipe: toi.yaml}", "sweep.yaml:10:14", "there is no such file"),
        ("- {recipe: toy.yaml}", "- {recipe: toi.yaml}", "sweep.yaml:10:14", "did you mean 'toy.yaml'"),
        ("- {recipe: toy.yaml}", "- {recipe: .}", "sweep.yaml:10:14", "is a folder"),
        ("name: narrow", "name: 7", "sweep.yaml:12:11", "expected text"),
        ("quantize.weights.bits: 3", "quantize.weights.bits: 33", "sweep.yaml:13:34", "at most 16"),
        ("quantize.weights.bits: 3", "quantize.wieghts.bits: 3", "sweep.yaml:13:34", "unknown key 'wieghts'"),
        ("techniques.toy.ranges.percentile", "techniques.toy.range.percentile", "sweep.yaml:13:37", "did you mean"),
    ],
)
def test_mistakes_point_at_the_sweep(folder: Path, old: str, new: str, place: str, message: str) -> None:
    assert old in SWEEP
    with pytest.raises(RecipeError) as caught:
        load(folder, SWEEP.replace(old, new))
    assert message in str(caught.value)
    assert place in str(caught.value)


def test_problems_of_a_recipe_are_reported_once_in_the_recipe(folder: Path) -> None:
    (folder / "toy.yaml").write_text(RECIPE.replace("toy.ranges", "toy.nothing"))
    with pytest.raises(RecipeError) as caught:
        load(folder, SWEEP.replace(", techniques.toy.ranges.percentile: 99.0", ""))
    assert len(caught.value.problems) == 1
    assert "toy.yaml:6:" in str(caught.value)


def test_every_recipe_that_is_not_there_is_named_once(folder: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(folder, SWEEP.replace("recipe: toy.yaml", "recipe: toi.yaml"))
    assert [problem.where.rpartition("sweep.yaml:")[2] for problem in caught.value.problems] == ["10:14", "11:13"]
