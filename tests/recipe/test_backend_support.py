"""The validation reports unsupported options and missing packages at their line."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import ROOT
from recipe_toys import GOOD, Bits, Images, Ranges, registry

import qplug
from qplug import BackendOffer, Extra, Granularity, InputError, RecipeError
from qplug.hooks.registry import backend_of, installed
from qplug.recipe import load_recipe
from qplug.recipe.check import implements

GONE = Extra("qplug_there_is_no_such_module", "pip install 'qplug[gone]'")
LIMITED = BackendOffer(
    "toy:Backend",
    bits=(4, 8),
    granularities=(Granularity.PER_TENSOR,),
    asymmetric=False,
    float_zero_points=False,
    scope=("layernorm",),
    without=("qplug_smooth",),
)


def problems(tmp_path: Path, text: str, offer: BackendOffer) -> list[str]:
    known = registry()
    known.backends["brevitas"], known.techniques["toy.bits"] = offer, Bits
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    try:
        load_recipe(path, registry=known)
    except RecipeError as error:
        return [str(problem).replace(f"{path}:", "") for problem in error.problems]
    return []


TENSOR = "granularity: per_tensor"
EXCLUDED = {
    "weights.bits": ("weights: {bits: 4}", "weights: {bits: 2}", "8:19", "has 4 to 8 bits, received 2"),
    "activations.bits": ("bits: 4, gran", "bits: 9, gran", "9:23", "has 4 to 8 bits, received 9"),
    "weights.granularity": ("weights:", "weights:", "8:3", "has no per_channel"),
    "activations.granularity": (TENSOR, "granularity: per_head", "9:39", "has no per_head"),
    "activations.symmetric": (TENSOR, "symmetric: false", "9:37", "has no zero points"),
    "activations.zero_point": (TENSOR, "symmetric: false, zero_point: float", "9:56", "has no float zero points"),
    "overrides.0.bits": ("techniques:", "  overrides: [{match: a, bits: 3}]\ntechniques:", "10:32", "has 4 to 8 bits"),
    "overrides.1.granularity": (
        "techniques:",
        "  overrides: [{match: a, bits: 5}, {match: b, granularity: per_head}]\ntechniques:",
        "10:60",
        "has no per_head",
    ),
    "scope.softmax": ("techniques:", "  scope: {softmax: true, layernorm: true}\ntechniques:", "10:20", "these inputs"),
}


@pytest.mark.parametrize("key", EXCLUDED)
def test_unsupported_options_are_reported_at_their_line(tmp_path, key):
    old, new, place, what = EXCLUDED[key]
    (found,) = (text for text in problems(tmp_path, GOOD.replace(old, new, 1), LIMITED) if f"quantize.{key}: " in text)
    assert found.startswith(f"{place}: quantize.{key}: backend 'brevitas' ")
    assert what in found.partition("\n")[0]
    assert "→" in found


def test_an_unsupported_hook_is_reported_at_its_line(tmp_path):
    found = problems(tmp_path, GOOD, LIMITED)[-1]
    assert found.startswith("11:10: techniques.0: backend 'brevitas' cannot run qplug_smooth, which 'toy.split'")


def test_unsupported_bits_of_a_technique_are_reported_given_or_by_default(tmp_path):
    text = f"{GOOD}  - use: toy.bits\n    candidates: [4, 6, 12]\n"
    default, said = problems(tmp_path, text, BackendOffer("toy:Backend", bits=(4, 8)))
    assert said.startswith(
        "15:17: techniques.2.candidates: backend 'brevitas' has 4 to 8 bits, 'toy.bits' may allocate 12\n"
    )
    assert default.startswith("14:10: techniques.2.least: ")
    assert "'toy.bits' may allocate 2 by default" in default
    assert said.endswith("→ set candidates to bits that the backend has, or change the backend")
    assert problems(tmp_path, text.replace("12]", "8]\n    least: 4"), BackendOffer("toy:Backend", bits=(4, 8))) == []


def test_the_validation_refuses_a_wrong_width(tmp_path):
    text = f"{GOOD}  - use: toy.bits\n    candidates: [4, much]\n    least: 4\n"
    found = problems(tmp_path, text, BackendOffer("toy:Backend", bits=(4, 8)))
    assert [line.partition(": ")[0] for line in found] == ["15:21"]


ALLOCATORS = {"baseline.uniform_bits", "hawq.hawq_v3", "liu2021.pareto", "modelopt.auto_quantize", "mptq_vit.greedy_mp"}


def test_techniques_that_allocate_bits_declare_their_fields():
    techniques = installed().techniques
    able = {name: one for name, one in techniques.items() if implements(one, "qplug_allocate_bits")}
    assert set(able) >= ALLOCATORS
    assert {name for name in ALLOCATORS if not able[name].allocates} == set()
    assert all(key in one.Config.model_fields for one in techniques.values() for key in one.allocates)


def test_all_problems_are_reported_at_once(tmp_path):
    text = GOOD.replace("weights: {bits: 4}", "weights: {bits: 12}").replace("split: 3", "splat: 3")
    found = problems(tmp_path, text, LIMITED)
    assert [line.partition(":")[0] for line in found] == ["8", "8", "11", "12"]


def test_an_offer_without_limits_refuses_nothing(tmp_path):
    text = GOOD.replace("bits: 4}", "bits: 16, symmetric: false}")
    assert problems(tmp_path, text, BackendOffer("toy:Backend")) == []


def test_a_backend_whose_package_is_missing_is_refused_with_the_command(tmp_path):
    found = problems(tmp_path, GOOD, BackendOffer("toy:Backend", needs=(GONE,)))
    assert len(found) == 1
    assert found[0].startswith("6:10: backend: 'brevitas' needs the package 'qplug_there_is_no_such_module'")
    assert found[0].endswith("→ pip install 'qplug[gone]'")


NEEDY = {"techniques.1: 'toy.ranges'": (Ranges, "13:10"), "data.calibration: 'images'": (Images, "4:25")}


@pytest.mark.parametrize("who", NEEDY)
def test_a_component_whose_package_is_missing_is_refused_with_the_command(tmp_path, monkeypatch, who):
    component, place = NEEDY[who]
    monkeypatch.setattr(component, "needs", (GONE,))
    found = problems(tmp_path, GOOD, BackendOffer("toy:Backend"))[0]
    assert found.startswith(f"{place}: {who} needs the package 'qplug_there_is_no_such_module'")
    assert found.endswith("→ pip install 'qplug[gone]'")


def test_the_extra_of_modelopt_names_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(Extra, "missing", property(lambda extra: extra.module == "modelopt"))
    path = tmp_path / "recipe.yaml"
    path.write_text((ROOT / "recipes/mptq_vit.yaml").read_text())
    with pytest.raises(RecipeError, match=r"backend=modelopt: backend: 'modelopt' needs the package") as caught:
        qplug.load_recipe(path, ["backend=modelopt"])
    assert caught.value.problems[0].fix == "pip install 'qplug[modelopt]'"
    with pytest.raises(InputError, match="needs the package 'modelopt'") as late:
        backend_of("modelopt", installed())
    assert late.value.fix == "pip install 'qplug[modelopt]'"
