"""A real detector of a plugin: its model, its decoder and its blocks come through the public door."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
import torch
from fastestdet import CLASSES, FastestDet, FastestDetBoxes

import qplug
from qplug.hooks.registry import GROUP, Registry, build
from qplug.recipe.schema import recipe_type

WEIGHTS = "weights/fastestdet_coco.safetensors"


@pytest.fixture(scope="module")
def registry() -> Registry:
    found = build([*entry_points(group=GROUP), EntryPoint("fastestdet", "fastestdet", GROUP)])
    assert not found.broken()
    return found


def recipe(registry: Registry, shared: Path, weights: int, inputs: int, images: int = 128):
    def data(split: str, **more):
        folder = shared / "data/coco_sample" / split
        files = {"path": str(folder / "images"), "annotations": str(folder / "boxes.json")}
        return {"source": "coco", **files, "labels": "position", **more}

    return recipe_type(registry).model_validate(
        {
            "version": 1,
            "model": {"source": "fastestdet", "checkpoint_path": str(shared / WEIGHTS)},
            "data": {"calibration": data("train", images=images), "evaluation": data("val"), "batch_size": 16},
            "quantize": {
                "weights": {"bits": weights, "granularity": "per_channel"},
                "activations": {"bits": inputs, "symmetric": False},
            },
            "techniques": [{"use": "baseline.minmax"}],
        }
    )


def test_the_plugin_offers_its_task(registry):
    assert registry.tasks["fastestdet_boxes"] == "fastestdet:FastestDetBoxes"
    assert registry.owners["task:fastestdet_boxes"].name == "fastestdet"


def test_a_box_is_decoded_as_its_authors_say():
    """Position (row 3, column 5) of 22: centre ((5 + tanh 0.5)/22, (3 + tanh −0.5)/22), size sigmoid(0), sigmoid(1)."""
    outputs = torch.zeros(1, 5 + CLASSES, 22, 22)
    outputs[0, 0, 3, 5], outputs[0, 5 + 16, 3, 5] = 0.81, 0.64
    outputs[0, 1:5, 3, 5] = torch.tensor([0.5, -0.5, 0.0, 1.0])
    rows = FastestDetBoxes().detections(outputs)
    best = rows[0, 0].tolist()
    x, y = (5 + 0.46211716) / 22 * 352, (3 - 0.46211716) / 22 * 352
    wide, high = 0.5 * 352, 0.73105858 * 352
    assert best[:4] == pytest.approx([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2], rel=1e-5)
    assert best[4:] == pytest.approx([0.81**0.6 * 0.64**0.4, 16.0])
    assert not rows[0, 1:].any()


def test_the_weights_are_those_of_the_model(shared):
    from safetensors import safe_open

    with safe_open(shared / WEIGHTS, "pt") as file:
        stored = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  no mapping
    assert stored == {key: tuple(value.shape) for key, value in FastestDet().state_dict().items()}


@pytest.mark.real
def test_it_is_as_good_as_measured_and_loses_little_at_8_bits(registry, shared):
    found = qplug.run(recipe(registry, shared, 8, 8), registry=registry).metrics
    assert found["float.ap"] == pytest.approx(0.188, abs=5e-4)
    assert found["float.ap50"] == pytest.approx(0.378, abs=5e-4)
    assert found["quantized.ap"] > found["float.ap"] - 0.005  # measured: 0.1846
    assert found["quantized.agreement"] > 0.7  # measured: 0.775
