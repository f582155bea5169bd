"""A recipe that ``--set`` changed does not keep the name of the recipe as it is in the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_toys import GOOD, registry

from qplug import load_recipe
from qplug.recipe.settings_name import with_settings


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "good"),
        (["quantize.weights.bits=8", "quantize.activations.bits=8"], "good · weights.bits=8, activations.bits=8"),
        (["techniques.toy.split.split=5"], "good · toy.split.split=5"),
        (["model.name=deit", "seed=3", "data.calibration.path=a/b", "data.evaluation.images=9"], "good"),
        (["data.calibration.images=64"], "good · calibration.images=64"),
        (["quantize.weights.bits=8", "quantize.weights.bits=6"], "good · weights.bits=6"),
        ([f"k{index}={index}" for index in range(6)], "good · k0=0, k1=1, k2=2, k3=3, 2 more"),
        ([f"techniques=[{'x' * 99}]"], "good · techniques=[" + "x" * 22 + "…"),
    ],
)
def test_what_was_set_is_in_the_name_in_short(overrides: list[str], name: str) -> None:
    assert with_settings("good", overrides) == name


def test_a_loaded_recipe_has_that_name(tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    assert load_recipe(path, registry=registry()).name == "good"
    changed = load_recipe(path, ["quantize.weights.bits=8"], registry())
    assert changed.name == "good · weights.bits=8"
    (tmp_path / "resolved.yaml").write_text(changed.yaml())
    assert load_recipe(tmp_path / "resolved.yaml", registry=registry()).name == changed.name
    assert load_recipe(path, ["quantize.weights.bits=8", "name=mine"], registry()).name == "mine"
    path.write_text(f"name: own\n{GOOD}")
    assert load_recipe(path, ["quantize.weights.bits=8"], registry()).name == "own · weights.bits=8"
