"""``--model`` and ``--data`` of run and init, and the recipes that init writes."""

import json
from pathlib import Path

import pytest
from PIL import Image

from qplug.cli import main
from qplug.recipe import load_recipe


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A data set of two classes; the working folder."""
    monkeypatch.chdir(tmp_path)
    for index, (part, name) in enumerate((part, name) for part in ("train", "val") for name in ("ant", "bee")):
        folder = tmp_path / "set" / part / name
        folder.mkdir(parents=True)
        for image in range(2):
            Image.new("RGB", (32, 32), (40 * index, 90 * image, 7)).save(folder / f"{image}.png")
    return tmp_path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code, capsys.readouterr()


def written(capsys, *arguments):
    code, text = run(capsys, "init", *arguments, "-o", "own.yaml")
    assert code == 0, text.err
    return load_recipe("own.yaml"), text.err


def test_init_writes_a_recipe_that_validates_with_the_line_for_editors(pictures, capsys):
    recipe, said = written(capsys, "--model", "timm:resnet18", "--data", "set", "--goal", "w4a4")
    text = Path("own.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=qplug.schema.json\n")
    assert "# Protocol: 64 calibration images." in text
    assert json.loads(Path("qplug.schema.json").read_text())["properties"]["quantize"]
    assert (recipe.model.source, recipe.model.name, recipe.model.pretrained) == ("timm", "resnet18", True)
    assert (recipe.data.calibration.path, recipe.data.calibration.images) == ("set/train", 64)
    assert recipe.data.evaluation.path == "set/val"
    assert recipe.quantize == load_recipe("w4a4").quantize
    assert recipe.techniques == load_recipe("w4a4").techniques
    assert "evaluation: set/val, 2 class folders" in said


def test_init_for_deployment_leaves_out_what_names_a_layer_of_another_model(pictures, capsys):
    recipe, said = written(capsys, "--model", "timm:resnet18", "--data", "set", "--goal", "deploy")
    assert recipe.quantize.overrides == ()
    assert "left out: the override blocks.7.mlp.fc2*" in said
    Path("own.yaml").unlink()
    recipe, said = written(capsys, "--model", "timm:vit_tiny_patch16_224", "--data", "set", "--goal", "deploy")
    assert len(recipe.quantize.overrides) == 1
    assert "left out" not in said


def test_a_checkpoint_has_the_classes_of_the_data(pictures, capsys):
    options = ("--model", "timm:resnet18", "--checkpoint", "own.safetensors", "--data", "set", "--goal", "brecq_w2a8")
    recipe, _ = written(capsys, *options)
    assert (recipe.model.num_classes, recipe.model.pretrained) == (2, False)


def test_without_options_init_writes_the_embedded_recipe(pictures, capsys):
    recipe, _ = written(capsys)
    assert recipe == load_recipe("w8a8").model_copy(update={"name": "own"})


def test_the_batch_size_and_the_techniques_of_the_recipe_stay(pictures):
    from qplug.recipe.write import recipe_text

    text = load_recipe("w8a8").yaml().replace("batch_size: 32", "batch_size: 5")
    Path("base.yaml").write_text(text)
    data = {
        "data.calibration": {"source": "digits", "split": "test"},
        "data.evaluation": {"source": "digits", "split": "train"},
    }
    Path("own.yaml").write_text(recipe_text(Path("base.yaml"), data))
    found = load_recipe("own.yaml")
    assert found.data.batch_size == 5
    assert found.data.calibration.split == "test"
    assert found.techniques == load_recipe("base.yaml").techniques


def test_training_images_come_from_the_data_too(pictures, capsys):
    recipe, _ = written(capsys, "--model", "vit_digits", "--data", "set", "--goal", "qat")
    assert recipe.data.training.path == "set/train"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init", "--goal", "nonsense"], "neither a file nor a recipe 'nonsense'"),
        (["init", "-o", "there.yaml"], "this file exists"),
        (["init", "--checkpoint", "x"], "needs --model, which was not given"),
        (["init", "--data", "nowhere"], "the folder does not exist"),
        (["run", "w8a8", "--model", "timm:resnet18"], "needs images, and the recipe's are the digits"),
        (["run", "w8a8", "--model", "timm:resnet1888", "--data", "set"], "timm has no model 'resnet1888'"),
        (["run", "w8a8", "--checkpoint", "x"], "needs --model"),
        (["run", "w8a88"], "did you mean 'w8a8'"),
    ],
)
def test_what_cannot_be_is_refused(pictures, capsys, arguments, message):
    Path("there.yaml").write_text("")
    code, text = run(capsys, *arguments)
    assert code == 2
    assert message in text.err
    assert Path("there.yaml").read_text() == ""


def test_recipes_are_listed(capsys):
    code, text = run(capsys, "recipes", "--json")
    rows = json.loads(text.out)["recipes"]
    assert code == 0
    assert [row["name"] for row in rows[:3]] == ["w8a8", "w4a8", "w4a4"]
    _, text = run(capsys, "recipes")
    assert "W8A8 for any model: the safe first run" in text.out


def test_validate_takes_names_and_compare_tells_them_from_folders(capsys):
    from qplug.cli.compare import _is_yaml

    code, text = run(capsys, "validate", "w8a8", "repq_vit")
    assert code == 0
    assert text.out.startswith("w8a8: ok (mptq_vit.sq_b, baseline.hessian)")
    assert _is_yaml(Path("w4a4"))
    assert not _is_yaml(Path("runs"))


@pytest.mark.slow
def test_the_first_run_is_one_line(pictures, capsys):
    """A model of one's own with two classes, by its checkpoint."""
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_vit", num_classes=2).state_dict(), "own.safetensors")
    options = ["--model", "timm:test_vit", "--checkpoint", "own.safetensors", "--data", "set"]
    code, text = run(
        capsys,
        "run",
        "w8a8",
        *options,
        "--out",
        "done",
        "--no-cache",
        "--set",
        "techniques=[{use: baseline.minmax}]",
        "--set",
        "data.calibration.images=2",
    )
    assert code == 0, text.err
    assert "2 outputs, one for each class folder" in text.err
    metrics = json.loads(Path("done/metrics.json").read_text())
    assert metrics["images.evaluation"] == 4
    assert metrics["bits.weights_mean"] == 8
