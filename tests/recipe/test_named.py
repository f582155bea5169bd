"""Recipes by name: from the checkout's folder, and as the wheel holds them."""

import pytest
from paths import RECIPES, ROOT

from qplug import InputError, load_recipe
from qplug.hooks.registry import installed
from qplug.recipe.named import GENERAL, _root, description, layers_of_its_own, named_recipes, recipe_file


def test_every_recipe_but_the_sweeps_has_a_name_and_one_line():
    files = {path.relative_to(RECIPES) for path in RECIPES.rglob("*.yaml") if path.parent.name != "sweeps"}
    found = named_recipes()
    assert {path.relative_to(_root()) for path in found.values()} == files
    assert tuple(found)[: len(GENERAL)] == GENERAL
    lines = {name: description(path) for name, path in found.items()}
    assert all(10 < len(line) < 200 and not line.endswith(".") for line in lines.values())
    assert lines["w8a8"] == "W8A8 for any model: the safe first run"
    assert lines["liu_2021"].startswith("Mixed precision of Liu et al. 2021 (")


def test_a_name_of_two_files_is_that_of_the_outer_one_and_then_of_imagenets():
    assert named_recipes()["mptq_vit_w4a4"] == _root() / "imagenet" / "mptq_vit_w4a4.yaml"
    assert named_recipes()["coco/mptq_vit_w4a4"] == _root() / "coco" / "mptq_vit_w4a4.yaml"
    assert named_recipes()["qmlp_mixer"] == _root() / "qmlp_mixer.yaml"
    assert named_recipes()["cifar10/qmlp_mixer"] == _root() / "cifar10" / "qmlp_mixer.yaml"


def test_a_name_loads_the_same_recipe_as_the_file():
    assert load_recipe("w4a8") == load_recipe(RECIPES / "w4a8.yaml")
    assert load_recipe("w4a8", ["seed=3"]).seed == 3


@pytest.mark.parametrize(
    ("technique", "recipe"),
    [
        ("brecq.brecq", "brecq"),
        ("brecq.adaround", "adaround_w2a8"),
        ("smoothing.smooth_quant", "smoothquant"),
        ("modelopt.smooth_quant", "modelopt_smoothquant"),
        ("liu2021.pareto", "liu_2021"),
    ],
)
def test_a_technique_stands_for_a_recipe_that_uses_it(technique, recipe):
    path = recipe_file(technique, installed().techniques)
    assert path.stem == recipe
    assert technique in {getattr(step, "use", "") for step in load_recipe(path).techniques}


def test_what_is_no_name_is_refused_and_a_file_wins(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"neither a file nor a recipe 'w8a9'[\s\S]*did you mean 'w8a8'"):
        load_recipe("w8a9")
    with pytest.raises(InputError, match="no recipe of the technique"):
        load_recipe("baseline.uniform_bits")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w8a8").write_text((RECIPES / "w4a4.yaml").read_text())
    assert load_recipe("w8a8").quantize.weights.bits == 4


def test_values_in_memory_are_a_recipe_and_their_problems_are_named():
    values = load_recipe("w8a8").dump()
    assert load_recipe({**values, "seed": 7}).seed == 7
    with pytest.raises(InputError, match="the recipe: bits: unknown key 'bits'"):
        load_recipe({**values, "bits": 4})
    with pytest.raises(InputError, match="expected numbers, texts, lists and mappings"):
        load_recipe({**values, "seed": RECIPES})


def test_overrides_of_single_layers_are_told_from_others():
    assert layers_of_its_own(load_recipe("deploy_int8").quantize) == ["blocks.7.mlp.fc2*"]
    assert layers_of_its_own(load_recipe("mptq_vit").quantize) == []


def test_the_wheel_holds_the_recipes_of_the_checkout():
    assert '"recipes" = "qplug/recipe/named_recipes"' in (ROOT / "pyproject.toml").read_text()
