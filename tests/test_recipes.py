"""Every recipe that ships: it loads, validates, round-trips, and the embedded one runs."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from qplug import InputError, load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
ALL = sorted(str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml"))


@pytest.mark.parametrize("name", ALL)
def test_it_validates_and_survives_a_round_trip(name, tmp_path):
    recipe = load_recipe(RECIPES / name)
    again = tmp_path / "recipe.yaml"
    with again.open("w") as stream:
        YAML(typ="safe").dump(recipe.dump(), stream)
    assert load_recipe(again) == recipe


@pytest.mark.parametrize("name", ALL)
def test_it_says_its_protocol(name):
    comment = " ".join(line.lstrip("# ") for line in (RECIPES / name).read_text().splitlines() if line.startswith("#"))
    assert "Protocol:" in comment
    for word in ("calibration images", "linear", "matmul", "Softmax", "LayerNorm"):
        assert word in comment


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("imagenet")])
def test_it_can_be_pointed_at_other_models_and_folders(name):
    recipe = load_recipe(
        RECIPES / name,
        [
            "model.name=swin_tiny_patch4_window7_224",
            "model.checkpoint_path=null",
            "model.pretrained=true",
            "data.calibration.path=/calib",
            "data.evaluation.path=/val",
            "data.calibration.class_map=/map.txt",
            "data.evaluation.class_map=/map.txt",
        ],
    )
    assert recipe.model.name == "swin_tiny_patch4_window7_224"
    assert recipe.model.pretrained
    assert recipe.data.calibration.class_map == recipe.data.evaluation.class_map == "/map.txt"


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("imagenet")])
def test_the_paths_that_it_ships_with_are_refused_by_name(name):
    from qplug.registry import installed

    recipe = load_recipe(RECIPES / name)
    with pytest.raises(InputError, match="path/to/"):
        installed().models["timm"](recipe.model).load()
    with pytest.raises(InputError, match="path/to/"):
        installed().datasets["folder"](recipe.data.calibration).open(seed=0)


@pytest.mark.slow
def test_the_embedded_recipe_runs(tmp_path):
    from qplug import run

    result = run(load_recipe(RECIPES / "mptq_vit.yaml"), out=tmp_path / "run")
    metrics = result.metrics
    assert metrics["float.top1"] >= 0.96
    assert metrics["coverage.macs"] == pytest.approx(1.0)
    assert 3.5 <= metrics["bits.weights_mean"] <= 4.5
    assert 3.5 <= metrics["bits.activations_mean"] <= 4.5
    assert metrics["quantized.agreement"] > 0.5
    assert (tmp_path / "run" / "metrics.json").is_file()
