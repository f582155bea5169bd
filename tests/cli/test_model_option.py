"""MODEL of inspect and sensitivity: names, functions, recipes and run folders."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from qplug.cli import main

OWN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, classes)

    def forward(self, x):
        return {"logits": self.head(self.conv(x).relu().mean((2, 3)))}


class Dense(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 1)
"""
RECIPE = """
version: 1
model: {source: import, target: "own_model:Net", kwargs: {classes: 10}, preprocessing: {PREPROCESSING}}
data:
  calibration: {source: digits, split: train, images: 8}
  evaluation: {source: digits, split: test, images: 10}
quantize: {weights: {bits: 8}, activations: {bits: 8}}
techniques: [{use: baseline.minmax}]
"""
PREPROCESSING = (
    "input_size: [3, 8, 8], mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], interpolation: bilinear, crop_pct: 1"
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_model", None)
    (tmp_path / "own_model.py").write_text(OWN)
    (tmp_path / "own.yaml").write_text(RECIPE.replace("PREPROCESSING", PREPROCESSING))
    return tmp_path


def call(*arguments: object) -> int:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, before)
    return int(ended.value.code or 0)


def inspected(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert call("inspect", *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert call(*arguments) == 2
    return capsys.readouterr().err


def test_a_model_of_ones_own_needs_a_size_alone(capsys):
    found = inspected(capsys, "own_model:Net", "--input-size", "3,32,32")
    assert [site["name"] for site in found["sites"]] == ["conv.weight", "conv.input", "head.weight", "head.input"]
    assert found["total_macs"] == 8 * 8 * 8 * 48 + 32
    assert found["notes"] == ["the model returns a dict with logits (1, 4), of which 'logits' is read"]
    assert call("inspect", "own_model:Net", "--input-size", "3,32,32") == 0
    assert "of which 'logits' is read" in capsys.readouterr().out
    error = refused(capsys, "inspect", "own_model:Net")
    assert "own_model:Net: the model has no complete preprocessing" in error
    assert "add --input-size C,H,W" in error


def test_a_recipe_and_a_run_folder_stand_for_their_model(capsys):
    found = inspected(capsys, "own.yaml", "--allow-code")
    assert (found["model"], found["sites"][2]["shape"]) == ("own.yaml", [10, 8])
    assert call("run", "own.yaml", "--allow-code", "--out", "run", "--no-cache") == 0
    capsys.readouterr()
    assert inspected(capsys, "run", "--allow-code")["sites"] == found["sites"]


def test_a_recipe_brings_its_data_too(capsys):
    assert call("inspect", "own.yaml", "--allow-code", "--ranges", "--calibration-images", 4, "--json") == 0
    assert json.loads(capsys.readouterr().out)["protocol"]["images"] == 4
    assert call("sensitivity", "own.yaml", "--allow-code", "--bits", 4, "--json", "--evaluation-images", 6) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["protocol"]["images"] == {"calibration": 32, "evaluation": 6}


@pytest.mark.parametrize("name", ["hf-hub:timm/test_vit.r160_in1k", "timm/test_vit.r160_in1k", "hf_hub:timm/test_vit"])
def test_names_of_the_hub_are_timms(capsys, name):
    found = inspected(capsys, name)
    assert found["model"] == name.rpartition("/")[2]
    assert found["notes"] == [f"{name} is timm's {found['model']}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "hf-hub:someone/net"], "received 'someone/net' of another owner on the hub"),
        (["inspect", "own_model:Dense", "--input-size", "3,8,8"], "expected is a tensor (B, classes)"),
        (
            ["inspect", "own_model:Net", "--input-size", "3x8x8"],
            "expected channels, height and width such as 3,224,224",
        ),
        (["inspect", "own_model:Net", "--input-size", "2,8,8"], "preprocessing.input_size"),
        (["inspect", "vit_digits", "--input-size", "1,8,8"], "has no effect on a model of the zoo"),
        (["inspect", "own.yaml", "--input-size", "3,8,8"], "has no effect on the model of a recipe"),
        (["inspect", "lacking.yaml"], "lacking.yaml"),
        (["inspect", "./"], "is not a run folder"),
        (
            ["sensitivity", "own_model:Net", "--calibration", ".", "--evaluation", "."],
            "give a recipe in the place of MODEL",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(capsys, arguments, message):
    assert message in refused(capsys, *arguments)


def test_the_beginning_of_a_name_is_completed(capsys):
    error = refused(capsys, "inspect", "deit_tiny")
    assert "did you mean 'deit_tiny_patch16_224'" in error


def test_a_folder_of_the_name_of_a_model_is_no_run(capsys, place):
    (place / "vit_digits").mkdir()
    assert inspected(capsys, "vit_digits")["model"] == "vit_digits"
