"""Detectors of torchvision as models of one tensor: the same detections, of fixed shapes; a run; what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from coco_toys import coco_config, write_coco
from torchvision.models.detection.image_list import ImageList as Images
from torchvision_toys import small

import qplug
from qplug import InputError
from qplug.core.task.detection import Detection
from qplug.hooks.registry import installed
from qplug.models.detector_interface import settle_detector
from qplug.models.float_model import FloatModel
from qplug.models.interface import settle_interface
from qplug.models.sources import ImportedModel
from qplug.recipe import Recipe
from qplug.recipe.schema import recipe_type


def photos(*sizes):
    draw = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=draw) for size in sizes]


@pytest.mark.parametrize("kind", ["faster", "mask", "retina", "fcos"])
def test_detections_are_those_of_the_model(kind):
    original = small(kind).eval()
    images = photos((40, 60), (50, 40))
    with torch.no_grad():
        expected = original(images)
    module = copy.deepcopy(original)
    preparation, task = settle_detector(module)
    batch = torch.stack([preparation.transform()(image) for image in images])
    assert batch.shape == (2, 4, 64, 64)
    assert settle_interface(module, batch[:1], task, "toy") == []
    with torch.no_grad():
        found = copy.deepcopy(module)(batch)
        alone = module(batch[:1])
    assert found.shape == (2, task.limit, 6 + task.side**2)
    assert task.relative_change(alone, found[:1]) < 1e-4
    for rows, wanted, image in zip(found, expected, images, strict=True):
        count = len(wanted["scores"])
        height, width = preparation.resized(tuple(image.shape[1:]))
        scale = torch.tensor([width / image.shape[2], height / image.shape[1]] * 2)
        assert count > 0
        assert not rows[count:].any()
        assert torch.allclose(rows[:count, 4], wanted["scores"], atol=1e-5)
        assert torch.equal(rows[:count, 5], wanted["labels"].float())
        assert torch.allclose(rows[:count, :4], wanted["boxes"] * scale, atol=1e-2)


def test_empty_regions_change_nothing():
    module = small("mask").eval()
    _, task = settle_detector(module)
    heads = module.roi_heads
    boxes = torch.tensor([[2.0, 2.0, 30.0, 40.0], [10.0, 4.0, 50.0, 60.0]])
    features = {"0": torch.rand(1, 32, 8, 8, generator=torch.Generator().manual_seed(0))}
    with torch.no_grad():
        (few,), _ = heads(features, [boxes], [(64, 64)])
        (many,), _ = heads(features, [torch.cat([boxes, torch.zeros(5, 4)])], [(64, 64)])
    assert (few["scores"] > 0).sum() > 0
    for key in ("boxes", "scores", "labels"):
        assert torch.equal(few[key], many[key])
    assert len(few["masks"]) == task.limit


def test_every_image_has_as_many_regions():
    module = small().eval()
    settle_detector(module)
    images = Images(torch.zeros(2, 3, 64, 64), [(64, 64), (48, 40)])
    with torch.no_grad():
        boxes, _ = module.rpn(images, {"0": torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(0))})
    assert [len(one) for one in boxes] == [20, 20]


def recipe(folder, *techniques, kind="faster", bits=8, labels="category_id") -> Recipe:
    write_coco(folder / "train", 4, seed=1)
    write_coco(folder / "test", 4, size=(60, 40), seed=2)
    return recipe_type(installed()).model_validate(
        {
            "version": 1,
            "model": {
                "source": "import",
                "target": "torchvision_toys:small",
                "kwargs": {"kind": kind},
                "task": "detection",
            },
            "data": {
                "calibration": coco_config(folder / "train", labels=labels),
                "evaluation": coco_config(folder / "test", labels=labels),
                "batch_size": 2,
            },
            "quantize": {"weights": {"bits": bits}, "activations": {"bits": bits}},
            "techniques": list(techniques),
        }
    )


@pytest.mark.parametrize("kind", ["retina", pytest.param("mask", marks=pytest.mark.slow)])
def test_a_run_of_a_detector(tmp_path, kind):
    result = qplug.run(recipe(tmp_path, {"use": "baseline.minmax"}, kind=kind), out=tmp_path / "run")
    found = result.metrics
    assert found["score"] == "ap"
    assert 0.0 <= found["quantized.ap"] <= found["quantized.ap50"] <= 1.0
    assert found["quantized.agreement"] > 0.5
    assert found["images.evaluation_labels"] == "3 classes, red … blue; labels by category id"
    assert found["coverage.macs"] is not None
    assert any("RoIAlign and the decoding of boxes stay in float" in warning for warning in result.warnings)
    sites = {decision.site.module for decision in result.plan}
    assert "backbone.first" in sites
    assert ("roi_heads.box_predictor.cls_score" in sites) == (kind != "retina")
    model = qplug.load_quantized(tmp_path / "run", allow_code=True)
    batch = torch.zeros(1, 4, 64, 64)
    assert torch.equal(model(batch), result.model(batch))


def test_gradients_reach_the_heads_of_a_detector(tmp_path):
    plain = qplug.run(recipe(tmp_path / "a", {"use": "baseline.hessian"}, bits=4))
    warned = [warning for warning in plain.warnings if "no gradient" in warning]
    assert len(warned) == 1
    assert "rpn.head.cls_logits" in warned[0]  # torchvision detaches proposals
    assert "box_predictor" not in warned[0]
    assert "backbone" not in warned[0]


def test_labels_that_a_detector_lacks(tmp_path):
    with pytest.raises(InputError, match="an object has class 0, which is the background of the model") as error:
        qplug.run(recipe(tmp_path, {"use": "baseline.minmax"}, labels="position"))
    assert "category_id or position" in error.value.fix


def load(**more):
    config = {"source": "import", "target": "torchvision_toys:small", "task": "detection", **more}
    return ImportedModel(ImportedModel.Config.model_validate(config)).load()


def test_the_canvas_and_nothing_else_can_be_set():
    model = load(preprocessing={"input_size": [3, 96, 128]})
    assert isinstance(model, FloatModel)
    assert isinstance(model.task, Detection)
    assert model.preprocessing.example().shape == (1, 4, 96, 128)
    with pytest.raises(InputError, match="normalizes and resizes by itself, and mean would do nothing"):
        load(preprocessing={"mean": [0.5, 0.5, 0.5]})
    with pytest.raises(InputError, match="expected a canvas of multiples of 32 pixels, received 100 × 128"):
        load(preprocessing={"input_size": [3, 100, 128]})
    with pytest.raises(InputError, match="returned a Backbone, which has no transform"):
        load(target="torchvision_toys:Backbone")
