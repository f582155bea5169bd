"""The models of the zoo: their size, their accuracy on held-out images, and their training."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from qplug.core.errors import InputError, QplugError
from qplug.data.digits import Digits
from qplug.data.loading import batches
from qplug.models.sources import ZooModel
from qplug.models.zoo import ZOO
from qplug.training.supervised.zoo import affine, shift_and_flip, tensors, train

WEIGHTS = files("qplug.models") / "weights"
EMBEDDED = {  # name → parameters, and top-1 on the held-out third, as measured
    "vit_digits": (169_162, 0.9816),
    "mixer_digits": (105_738, 0.9833),
    "resmlp_digits": (103_050, 0.9900),
    "convmixer_digits": (50_410, 0.9917),
}


TRAINED = {"mixer_cifar10": 154_058, "resmlp_cifar10": 154_442, "convmixer_cifar10": 28_234}
"""The models without embedded weights, with their numbers of parameters."""
DETECTOR = "mask_rcnn_shapes"


def test_the_zoo_and_the_recipe_have_the_same_models() -> None:
    named = get_args(ZooModel.Config.model_fields["name"].annotation)
    assert set(named) == set(ZOO) == {*EMBEDDED, *TRAINED, DETECTOR}
    assert {name for name, entry in ZOO.items() if entry.embedded} == {*EMBEDDED, DETECTOR}
    assert {path.name for path in WEIGHTS.iterdir()} == {f"{name}.safetensors" for name in (*EMBEDDED, DETECTOR)}


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_model_is_small_and_accurate_on_the_held_out_third(name: str) -> None:
    parameters, measured = EMBEDDED[name]
    model = ZooModel(ZooModel.Config(source="zoo", name=name)).load()
    images = Digits(Digits.Config(source="digits", split="test")).open(0)
    with torch.inference_mode():
        correct = [
            (model.module(pixels).argmax(1) == labels)
            for pixels, labels in batches(images, model.preprocessing.transform(), 128)
        ]
    accuracy = float(torch.cat(correct).float().mean())
    assert accuracy >= 0.96
    assert accuracy == pytest.approx(measured, abs=0.005)
    assert len((WEIGHTS / f"{name}.safetensors").read_bytes()) <= 7e5
    assert sum(p.numel() for p in model.module.parameters()) == parameters
    assert f"{parameters:,} parameters" in " ".join((ZOO[name].build.__doc__ or "").split())
    assert model.note == ""


@pytest.mark.slow
def test_training_is_seeded_writes_a_complete_file_and_restores_the_generators(tmp_path: Path) -> None:
    state, steps = torch.random.get_rng_state(), []
    accuracy = train("vit_digits", tmp_path / "a.safetensors", epochs=1, progress=lambda *at: steps.append(at))
    train("vit_digits", tmp_path / "b.safetensors", epochs=1)
    train("vit_digits", tmp_path / "c.safetensors", epochs=1, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert steps == [(1, 1)]
    assert 0.1 < accuracy < 0.9
    a, b, c = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "c.safetensors"]


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_checkpoint_records_its_training(name: str) -> None:
    with safe_open(str(WEIGHTS / f"{name}.safetensors"), "pt") as file:
        training = json.loads(file.metadata()["training"])
    assert (training["model"], training["seed"], training["epochs"]) == (name, 0, 300)
    assert training["test_top1"] == EMBEDDED[name][1]


@pytest.mark.slow
def test_training_a_batchnorm_keeps_its_statistics(tmp_path: Path) -> None:
    train("convmixer_digits", tmp_path / "a.safetensors", epochs=1)
    with safe_open(str(tmp_path / "a.safetensors"), "pt") as file:
        assert int(file.get_tensor("stem.2.num_batches_tracked")) == 19
        assert float(file.get_tensor("stem.2.running_mean").abs().sum()) > 0


@pytest.mark.slow
def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(QplugError, match="No space left"):
        train("vit_digits", tmp_path / "a.safetensors", epochs=1)
    assert not list(tmp_path.iterdir())


def test_unknown_model_and_folder_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are: vit_digits"):
        train("vit_letters", tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="does not exist"):
        train("vit_digits", tmp_path / "nowhere" / "a.safetensors")


@pytest.mark.parametrize(("augment", "shape"), [(affine, (16, 1, 8, 8)), (shift_and_flip, (16, 3, 32, 32))])
def test_augmentation_keeps_shape_and_range(augment: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    images = torch.rand(shape)
    moved = augment(images)
    assert moved.shape == images.shape
    assert not torch.equal(moved, images)
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1


def test_photographs_move_by_whole_pixels_and_half_of_them_are_mirrored() -> None:
    torch.manual_seed(0)
    images = torch.arange(32.0).view(1, 1, 1, 32).expand(400, 3, 32, 32)  # each pixel is its column
    middle = shift_and_flip(images)[:, 0, 16, 15:17]
    mirrored = middle[:, 0] > middle[:, 1]
    assert 150 < int(mirrored.sum()) < 250
    shift = torch.where(mirrored, middle[:, 0] - 16, middle[:, 0] - 15)
    assert sorted(set(shift.tolist())) == list(range(-4, 5))


@pytest.mark.parametrize("name", TRAINED)
def test_a_model_without_embedded_weights_needs_a_checkpoint(name: str) -> None:
    assert sum(p.numel() for p in ZOO[name].build().parameters()) == TRAINED[name]
    assert f"{TRAINED[name]:,} parameters" in " ".join((ZOO[name].build.__doc__ or "").split())
    with pytest.raises(ValidationError, match=f"qplug zoo train {name} --data FOLDER"):
        ZooModel.Config(source="zoo", name=name)


def test_training_on_a_folder_gives_a_checkpoint_that_a_recipe_loads(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs 'qplug[hf]'")
    import pyarrow

    for split, count in (("train", 96), ("test", 20)):
        rows = [coloured(label % 10, label) for label in range(count)]
        columns = {"image": [{"bytes": png, "path": None} for png in rows], "label": [i % 10 for i in range(count)]}
        parquet.write_table(pyarrow.table(columns), tmp_path / f"{split}.parquet")
    images, labels = tensors(ZOO["convmixer_cifar10"], "train", tmp_path)
    assert (images.shape, labels.tolist()) == ((96, 3, 32, 32), [i % 10 for i in range(96)])
    path = tmp_path / "trained.safetensors"
    accuracy = train("convmixer_cifar10", path, data=tmp_path, epochs=2)
    assert 0 <= accuracy <= 1
    source = ZooModel(ZooModel.Config(source="zoo", name="convmixer_cifar10", checkpoint_path=str(path)))
    loaded = source.load()
    assert loaded.note == ""
    assert torch.equal(loaded.module.state_dict()["head.weight"], load_file(path)["head.weight"])
    assert not torch.equal(source.architecture().module.state_dict()["head.weight"], load_file(path)["head.weight"])
    assert source.key()["checkpoint"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_checkpoint_replaces_embedded_weights(tmp_path: Path) -> None:
    train("vit_digits", tmp_path / "a.safetensors", epochs=1)
    own = ZooModel(ZooModel.Config(source="zoo", name="vit_digits", checkpoint_path=str(tmp_path / "a.safetensors")))
    embedded = ZooModel(ZooModel.Config(source="zoo", name="vit_digits"))
    assert own.load().fingerprint != embedded.load().fingerprint
    assert own.key() != embedded.key()


def test_a_data_folder_is_required_for_cifar10_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mixer_cifar10 is trained on cifar10, which is not embedded"):
        train("mixer_cifar10", tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="no folder is read"):
        train("vit_digits", tmp_path / "a.safetensors", data=tmp_path)
    with pytest.raises(InputError, match="no parquet file in it has 'train' in its path"):
        train("mixer_cifar10", tmp_path / "a.safetensors", data=tmp_path)
    assert not list(tmp_path.iterdir())


def coloured(label: int, seed: int) -> bytes:
    """A 32×32 PNG whose brightness depends on the label, with noise."""
    noise = np.random.default_rng(seed).integers(0, 20, (32, 32, 3))
    stream = io.BytesIO()
    Image.fromarray((noise + 20 * label).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_preprocessing_is_exact_on_the_models_own_images() -> None:
    image, _ = Digits(Digits.Config(source="digits", split="test")).open(0)[0]
    preprocessing = ZOO["vit_digits"].preprocessing
    expected = (torch.tensor(list(image.tobytes())).view(1, 8, 8) / 255 - preprocessing.mean[0]) / preprocessing.std[0]
    torch.testing.assert_close(preprocessing.transform()(image), expected)
