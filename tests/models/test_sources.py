"""Model sources: the models that they build, their keys, and the errors for invalid inputs."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from qplug.core.errors import InputError
from qplug.core.storage.hashing import fingerprint
from qplug.data.folder import Folder
from qplug.data.loading import batches
from qplug.models import zoo
from qplug.models.float_model import FloatModel
from qplug.models.sources import ImportedModel, TimmModel, ZooModel
from qplug.testing.run import ToyModel


def from_timm(name: str = "test_vit", **values: Any) -> FloatModel:
    return TimmModel(TimmModel.Config(source="timm", name=name, **values)).load()


def imported(target: str, **values: Any) -> FloatModel:
    return ImportedModel(ImportedModel.Config(source="import", target=target, **values)).load()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(7)
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_checkpoint_gives_exactly_its_weights_and_no_note(checkpoint: Path) -> None:
    model = from_timm(checkpoint_path=str(checkpoint))
    assert model.fingerprint == fingerprint(load_file(checkpoint))
    assert model.note == ""
    assert not model.module.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.module.parameters())


def test_random_weights_are_noted_and_the_same_each_time() -> None:
    state = torch.random.get_rng_state()
    model = from_timm()
    assert "random" in model.note
    assert model.fingerprint == from_timm().fingerprint
    assert torch.equal(state, torch.random.get_rng_state())


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(InputError, match=r"no model 'vit_tinny_patch16_224'\n.*did you mean 'vit_tiny_patch16_224'"):
        from_timm("vit_tinny_patch16_224")
    with pytest.raises(InputError, match=r"no weights 'nope' for vit_tiny_patch16_224\n.*augreg_in21k_ft_in1k"):
        from_timm("vit_tiny_patch16_224.nope")


def test_weights_that_cannot_be_fetched_suggest_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match=r"could not be fetched \(OSError: no route to host\)\n.*checkpoint_path"):
        from_timm(pretrained=True)


def test_two_sources_of_weights_are_refused() -> None:
    with pytest.raises(ValidationError, match="give one"):
        TimmModel.Config(source="timm", name="test_vit", pretrained=True, checkpoint_path="x.safetensors")


def test_input_size_builds_the_architecture_for_it() -> None:
    model = from_timm(num_classes=5, preprocessing={"input_size": (1, 96, 96), "mean": (0.5,), "std": (0.5,)})
    image = model.preprocessing.transform()(Image.new("RGB", (200, 100)))
    assert tuple(image.shape) == (1, 96, 96)
    assert tuple(model.module(image[None]).shape) == (1, 5)
    convolutional = from_timm("test_resnet", preprocessing={"input_size": (3, 64, 64)})
    assert tuple(convolutional.module(torch.zeros(1, 3, 64, 64)).shape) == (1, 1000)


@pytest.mark.slow
def test_checkpoint_of_another_size_is_resampled_only_on_request(checkpoint: Path) -> None:
    state = load_file(checkpoint)
    with pytest.raises(InputError, match="another architecture"):
        from_timm("vit_tiny_patch16_224", checkpoint_path=str(checkpoint))
    model = from_timm(checkpoint_path=str(checkpoint), preprocessing={"input_size": (3, 192, 192)})
    assert "timm's checkpoint_filter_fn" in model.note
    assert model.module.pos_embed.shape[1] > state["pos_embed"].shape[1]


def test_the_recipe_overrides_the_models_own_preprocessing() -> None:
    own = from_timm().preprocessing
    changed = from_timm(preprocessing={"crop_pct": 0.5, "interpolation": "bilinear"}).preprocessing
    assert (changed.crop_pct, changed.interpolation) == (0.5, "bilinear")
    assert (changed.mean, changed.std, changed.input_size) == (own.mean, own.std, own.input_size)
    with pytest.raises(InputError, match="mean has 1 values for 3 channels"):
        from_timm(preprocessing={"mean": (0.5,)})


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_transform_takes_images_of_any_mode(mode: str) -> None:
    transform = from_timm().preprocessing.transform()
    assert tuple(transform(Image.new(mode, (50, 40))).shape) == (3, 160, 160)


def test_import_calls_the_function_with_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(
        "import torch\n"
        "def make(classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, classes))\n"
        "def nothing():\n    return 3\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    values = {"mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "bilinear", "crop_pct": 1.0}
    model = imported("my_models:make", kwargs={"classes": 4}, preprocessing={"input_size": (3, 2, 2), **values})
    assert tuple(model.module(torch.zeros(1, 3, 2, 2)).shape) == (1, 4)
    assert "my_models:make" in model.note
    with pytest.raises(InputError, match=r"no complete pre.*\n.*set input_size, mean, std, interpolation, crop_pct"):
        imported("my_models:make", kwargs={"classes": 4})
    with pytest.raises(InputError, match=r"failed with \{\}: TypeError"):
        imported("my_models:make")
    with pytest.raises(InputError, match=r"has no 'mak'.*\n.*'make'"):
        imported("my_models:mak")
    with pytest.raises(InputError, match="returned int"):
        imported("my_models:nothing")
    with pytest.raises(InputError, match="is of type int: expected a class of modules or a function"):
        imported("my_models:number")
    with pytest.raises(InputError, match="cannot be imported: ModuleNotFoundError"):
        imported("no_such_module:make")


def key(source: type[TimmModel | ZooModel | ImportedModel | ToyModel], /, **values: Any) -> dict[str, Any]:
    values = source(source.Config(**values)).key()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    return values


def test_a_key_holds_the_configuration_and_the_checkpoints_content(checkpoint: Path) -> None:
    values = {"source": "timm", "name": "test_vit", "checkpoint_path": str(checkpoint)}
    first = key(TimmModel, **values)
    assert str(checkpoint) not in json.dumps(first)
    moved = checkpoint.rename(checkpoint.with_name("moved.safetensors"))
    assert key(TimmModel, **values | {"checkpoint_path": str(moved)}) == first
    assert key(TimmModel, **values | {"checkpoint_path": None}) != first
    assert key(TimmModel, **values | {"checkpoint_path": str(moved), "num_classes": 5}) != first
    damaged = bytearray(moved.read_bytes())
    damaged[-1] ^= 1
    moved.write_bytes(damaged)
    assert key(TimmModel, **values | {"checkpoint_path": str(moved)}) != first
    with pytest.raises(InputError, match="the file does not exist") as error:
        key(TimmModel, **values)
    assert error.value.where == str(checkpoint)
    assert key(ToyModel) == {"source": "toy"}


def test_a_key_changes_with_timm_and_with_embedded_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def keys() -> list[dict[str, Any]]:
        return [key(TimmModel, source="timm", name="test_vit"), key(ZooModel, source="zoo", name="vit_digits")]

    first = keys()
    assert first == keys()
    monkeypatch.setattr(zoo, "checkpoint", lambda name: name.encode())
    assert [before == after for before, after in zip(first, keys(), strict=True)] == [True, False]
    monkeypatch.undo()
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.0")
    assert [before == after for before, after in zip(first, keys(), strict=True)] == [False, False]


def test_the_key_of_an_import_changes_with_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key_models").mkdir()
    (tmp_path / "key_models/__init__.py").write_text("")
    (tmp_path / "key_models/vit.py").write_text("def make(depth): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    values = {"source": "import", "target": "key_models.vit:make", "kwargs": {"depth": 3}}
    first = key(ImportedModel, **values)
    assert first == key(ImportedModel, **values)
    assert first != key(ImportedModel, **values | {"kwargs": {"depth": 4}})
    (tmp_path / "key_models/parts.py").write_text("x = 1\n")
    assert first != key(ImportedModel, **values)
    assert "key_models" not in sys.modules
    with pytest.raises(InputError, match="no source files of 'no_such_models'"):
        key(ImportedModel, source="import", target="no_such_models:make")


def test_keys_are_computed_without_torch() -> None:
    code = (
        "import sys\n"
        "from qplug.models.sources import ImportedModel, TimmModel, ZooModel\n"
        "TimmModel(TimmModel.Config(source='timm', name='x')).key()\n"
        "ZooModel(ZooModel.Config(source='zoo', name='vit_digits')).key()\n"
        "ImportedModel(ImportedModel.Config(source='import', target='timm.models:make')).key()\n"
        "print([name for name in ('torch', 'timm', 'numpy', 'safetensors') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.real
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "mobilenetv1_025"])
def test_real_weights_reach_their_accuracy(shared: Path, name: str) -> None:
    path = str(shared / "weights" / f"{name}.safetensors")
    if name == "mobilenetv1_025":
        kwargs = {"variant": "mobilenetv1_100", "channel_multiplier": 0.25, "pad_type": "same", "bn_eps": 1e-3}
        values = {"interpolation": "bilinear"}
        target = "timm.models.efficientnet:_gen_mobilenet_v1"
        model = imported(target, kwargs=kwargs, checkpoint_path=path, preprocessing=values)
    else:
        model = from_timm(name, checkpoint_path=path)
    root = shared / "data/imagenet_sample"
    config = Folder.Config(source="folder", path=str(root / "dev"), class_map=str(root / "class_map.txt"), images=100)
    images = Folder(config).open(0)
    with torch.inference_mode():
        correct = [
            (model.module(pixels).argmax(1) == labels).float().sum()
            for pixels, labels in batches(images, model.preprocessing.transform(), 25)
        ]
    measured = {"vit_tiny_patch16_224": 85, "deit_tiny_patch16_224": 77, "mobilenetv1_025": 49}
    assert float(sum(correct)) >= measured[name] - 1


@pytest.mark.parametrize(
    "name",
    ["hf-hub:timm/test_vit.r160_in1k", "timm/test_vit.r160_in1k", "https://huggingface.co/timm/test_vit.r160_in1k"],
)
def test_names_of_the_hub_are_understood_and_said(name):
    found = TimmModel(TimmModel.Config(source="timm", name=name)).load()
    assert found.name == "test_vit.r160_in1k"
    assert found.note.startswith(f"{name} is timm's test_vit.r160_in1k; the weights are random")


@pytest.mark.parametrize("name", ["hf-hub:google/vit-base", "someone/net", "hf-hub:a/b/c"])
def test_names_of_other_owners_on_the_hub_are_refused(name):
    with pytest.raises(InputError, match="of another owner on the hub"):
        TimmModel(TimmModel.Config(source="timm", name=name)).load()
