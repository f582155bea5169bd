"""The embedded detector: its size, its AP on held-out scenes, and its training."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qplug.core.errors import InputError
from qplug.core.task.detection import Detection
from qplug.data.loading import batches
from qplug.data.shapes import Shapes
from qplug.models.interface import settle_interface
from qplug.models.sources import ZooModel
from qplug.training.supervised import zoo
from qplug.training.supervised.zoo_detector import _mirrored, _target

NAME = "mask_rcnn_shapes"
LEAST_AP50 = 0.6
WEIGHTS = files("qplug.models") / "weights" / f"{NAME}.safetensors"


def test_it_is_small():
    assert len(WEIGHTS.read_bytes()) < 2_000_000
    loaded = ZooModel(ZooModel.Config(source="zoo", name=NAME)).load()
    assert repr(loaded.task) == repr(Detection(4, 28, 100, background=True))
    assert loaded.preprocessing.example().shape == (1, 4, 96, 96)


@pytest.mark.slow
def test_it_detects_shapes_that_it_did_not_train_on():
    loaded = ZooModel(ZooModel.Config(source="zoo", name=NAME)).load()
    scenes = Shapes(Shapes.Config(source="shapes_detection", split="test", images=16)).open(0)
    settle_interface(loaded.module, loaded.preprocessing.example(), loaded.task, NAME)
    stream = batches(scenes, loaded.preprocessing.transform(), 16, collect=loaded.task.collect)
    with torch.inference_mode():
        ((inputs, labels),) = stream
        found = loaded.task.metrics(*[loaded.module(inputs)] * 2, labels)
    assert found["float.ap50"] > LEAST_AP50


def test_mirrored_objects_stay_where_the_pixels_are():
    scenes = Shapes(Shapes.Config(source="shapes_detection", split="train", images=1)).open(0)
    image, target = _target(*scenes[0])
    turned, moved = _mirrored(image, target, 1, 1)
    assert torch.equal(turned, image.flip(1, 2))
    assert torch.equal(moved["masks"], target["masks"].flip(1, 2))
    for box, mask in zip(moved["boxes"], moved["masks"], strict=True):
        rows, columns = mask.nonzero().unbind(1)
        edges = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (box - edges).abs().max() < 2.0


@pytest.mark.slow
def test_training_lowers_the_loss_and_writes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def few(config):
        return Shapes(Shapes.Config(source="shapes_detection", split="test", images=8))

    few.Config = Shapes.Config
    monkeypatch.setattr("qplug.data.shapes.Shapes", few)
    out = tmp_path / "small.safetensors"
    done = []
    precision = zoo.train(NAME, out, epochs=1, progress=lambda *step: done.append(step))
    assert 0.0 <= precision <= 1.0
    assert done == [(1, 1)]
    assert load_file(out).keys() == load_file(str(WEIGHTS)).keys()


def test_it_needs_no_folder(tmp_path: Path):
    with pytest.raises(InputError, match="mask_rcnn_shapes is trained on embedded data: no folder is read"):
        zoo.train(NAME, tmp_path / "x.safetensors", data=tmp_path)
