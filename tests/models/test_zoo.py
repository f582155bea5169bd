"""The embedded model: small, accurate on what it never saw, and made by a command that anyone can run."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from qplug.data import batches
from qplug.data.digits import Digits
from qplug.errors import InputError
from qplug.models.sources import ZooModel
from qplug.models.training import augment, train
from qplug.models.zoo import ZOO

EMBEDDED = files("qplug.models") / "weights" / "vit_digits.safetensors"


def test_embedded_model_is_small_and_accurate_on_the_held_out_third() -> None:
    model = ZooModel(ZooModel.Config(source="zoo", name="vit_digits")).load()
    images = Digits(Digits.Config(source="digits", split="test")).open(0)
    with torch.inference_mode():
        right = [
            (model.module(pixels).argmax(1) == labels)
            for pixels, labels in batches(images, model.preprocessing.transform(), 128)
        ]
    assert float(torch.cat(right).float().mean()) >= 0.96  # measured: 0.9816
    assert len(EMBEDDED.read_bytes()) <= 2e6
    assert sum(p.numel() for p in model.module.parameters()) == 169_162
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


def test_checkpoint_says_how_it_was_made() -> None:
    with safe_open(str(EMBEDDED), "pt") as file:
        assert '"epochs": 300' in file.metadata()["training"]


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
