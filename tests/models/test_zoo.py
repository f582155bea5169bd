"""The embedded models: small, accurate on what they never saw, and made by a command that anyone can run."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors import safe_open

from qplug.data import batches
from qplug.data.digits import Digits
from qplug.errors import InputError
from qplug.models.sources import ZooModel
from qplug.models.training import augment, train
from qplug.models.zoo import ZOO

WEIGHTS = files("qplug.models") / "weights"
EMBEDDED = {  # name → parameters, and top-1 on the held-out third, as measured
    "vit_digits": (169_162, 0.9816),
    "mixer_digits": (105_738, 0.9833),
    "resmlp_digits": (103_050, 0.9900),
    "convmixer_digits": (50_410, 0.9917),
}


def test_every_embedded_model_can_be_named_in_a_recipe_and_the_other_way_round() -> None:
    named = get_args(ZooModel.Config.model_fields["name"].annotation)
    assert set(named) == set(ZOO) == set(EMBEDDED)
    assert {path.name for path in WEIGHTS.iterdir()} == {f"{name}.safetensors" for name in ZOO}


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_model_is_small_and_accurate_on_the_held_out_third(name: str) -> None:
    parameters, measured = EMBEDDED[name]
    model = ZooModel(ZooModel.Config(source="zoo", name=name)).load()
    images = Digits(Digits.Config(source="digits", split="test")).open(0)
    with torch.inference_mode():
        right = [
            (model.module(pixels).argmax(1) == labels)
            for pixels, labels in batches(images, model.preprocessing.transform(), 128)
        ]
    accuracy = float(torch.cat(right).float().mean())
    assert accuracy >= 0.96
    assert accuracy == pytest.approx(measured, abs=0.005)
    assert len((WEIGHTS / f"{name}.safetensors").read_bytes()) <= 7e5
    assert sum(p.numel() for p in model.module.parameters()) == parameters
    assert f"{parameters:,} parameters" in " ".join((ZOO[name].build.__doc__ or "").split())
    assert model.note == ""


def test_training_is_seeded_writes_a_whole_file_and_leaves_the_generators_alone(tmp_path: Path) -> None:
    state, seen = torch.random.get_rng_state(), []
    accuracy = train("vit_digits", tmp_path / "a.safetensors", epochs=1, progress=lambda *at: seen.append(at))
    train("vit_digits", tmp_path / "b.safetensors", epochs=1)
    train("vit_digits", tmp_path / "c.safetensors", epochs=1, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert seen == [(1, 1)]
    assert 0.1 < accuracy < 0.9
    a, b, c = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "c.safetensors"]


@pytest.mark.parametrize("name", EMBEDDED)
def test_checkpoint_says_how_it_was_made(name: str) -> None:
    with safe_open(str(WEIGHTS / f"{name}.safetensors"), "pt") as file:
        training = json.loads(file.metadata()["training"])
    assert (training["model"], training["seed"], training["epochs"]) == (name, 0, 300)
    assert training["test_top1"] == EMBEDDED[name][1]


def test_training_a_batchnorm_keeps_its_statistics(tmp_path: Path) -> None:
    train("convmixer_digits", tmp_path / "a.safetensors", epochs=1)
    with safe_open(str(tmp_path / "a.safetensors"), "pt") as file:
        assert int(file.get_tensor("stem.2.num_batches_tracked")) == 19
        assert float(file.get_tensor("stem.2.running_mean").abs().sum()) > 0


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        train("vit_digits", tmp_path / "a.safetensors", epochs=1)
    assert not list(tmp_path.iterdir())


def test_unknown_model_and_folder_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are: vit_digits"):
        train("vit_letters", tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="does not exist"):
        train("vit_digits", tmp_path / "nowhere" / "a.safetensors")


def test_augmentation_keeps_shape_and_range() -> None:
    torch.manual_seed(0)
    images = torch.rand(16, 1, 8, 8)
    moved = augment(images)
    assert moved.shape == images.shape
    assert not torch.equal(moved, images)
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1


def test_preprocessing_is_exact_on_the_models_own_images() -> None:
    image, _ = Digits(Digits.Config(source="digits", split="test")).open(0)[0]
    how = ZOO["vit_digits"].preprocessing
    expected = (torch.tensor(list(image.tobytes())).view(1, 8, 8) / 255 - how.mean[0]) / how.std[0]
    torch.testing.assert_close(how.transform()(image), expected)
