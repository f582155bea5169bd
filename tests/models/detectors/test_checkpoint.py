"""Checkpoints of detectors: MMDetection's names and ours, and one clear sentence where they do not fit."""

import json
from pathlib import Path

import pytest
import torch
from detector_toys import small, weights
from safetensors.torch import save_file

from qplug.core.errors import InputError
from qplug.models.detectors.build import build
from qplug.models.detectors.checkpoint import NOTE, load

SHAPES = json.loads(Path(__file__).with_name("mmdetection.json").read_text())["mask_rcnn"]["shapes"]


@pytest.fixture
def state():
    return {name: tensor.float() for name, tensor in weights(SHAPES, "mask_rcnn").items() if "_index" not in name}


def test_mmdetections_file_loads(tmp_path, state):
    """As MMDetection writes it, with words about the training beside the state."""
    path = tmp_path / "mask_rcnn.pth"
    torch.save({"meta": {"epoch": 36, "CLASSES": ("one", "two", "three")}, "state_dict": state}, path)
    model = build(small())
    assert load(model, path, "small") == NOTE
    scores = model.roi_heads.box_predictor.cls_score.weight
    theirs = state["roi_head.bbox_head.fc_cls.weight"]
    assert torch.equal(scores[0], theirs[-1])
    assert torch.equal(scores[1:], theirs[:-1])


def test_our_own_file_loads_without_a_note(tmp_path):
    model, again = build(small()), build(small())
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    assert load(again, tmp_path / "own.safetensors", "small") == ""
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


def refusal(tmp_path, state, kind="mask_rcnn", **others):
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as error:
        load(build(small(kind, **others)), tmp_path / "w.safetensors", "mask_rcnn_swin_t")
    return error.value


def test_missing_and_unknown_tensors_are_listed(tmp_path, state):
    del state["neck.fpn_convs.2.conv.bias"]
    state["roi_head.mask_iou_head.fc.bias"] = torch.zeros(3)
    text = str(refusal(tmp_path, state))
    assert "backbone.fpn.layer_blocks.2.0.bias" in text
    assert "roi_head.mask_iou_head.fc.bias" in text


def test_other_shapes_are_listed(tmp_path, state):
    text = str(refusal(tmp_path, state, hidden=64))
    assert "roi_heads.box_head.fc6.weight: (32, 784) in the file, (64, 784) in the model" in text


def test_other_classes_are_refused_with_the_number(tmp_path, state):
    error = refusal(tmp_path, state, classes=80)
    assert "detects 3 classes, and the model 80" in str(error)
    assert error.fix == "set model.classes: 3"


def test_a_mask_rcnn_is_no_cascade(tmp_path, state):
    assert "belongs to another architecture" in str(refusal(tmp_path, state, "cascade_agnostic"))


def test_quantized_weights_are_refused(tmp_path, state):
    state["rpn_head.rpn_cls.weight"] = state["rpn_head.rpn_cls.weight"].to(torch.int8)
    assert "another kind of numbers" in str(refusal(tmp_path, state))
