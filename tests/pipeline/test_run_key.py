"""``lock.json`` names everything that a run depended on, and its content changes whenever a result could."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path

import pytest
import torch

from qplug import InputError, Metric, hookimpl, load_recipe
from qplug.core.types import Adapter, Event
from qplug.hooks.registry import installed
from qplug.pipeline.code_identity import code_of
from qplug.pipeline.run import run
from qplug.pipeline.run_key import lock, run_key, run_key_if_known

TEXT = """
version: 1
model: {source: zoo, name: vit_digits}
data:
  calibration: {source: digits, split: train, images: 32}
  evaluation: {source: digits, split: test}
quantize: {weights: {bits: 4}, activations: {bits: 4}}
techniques: [{use: baseline.minmax}]
"""
FEW = ("data.evaluation.images=9", "data.calibration.images=4")


@pytest.fixture
def recipe(tmp_path: Path):
    path = tmp_path / "toy.yaml"
    path.write_text(TEXT)
    return lambda *overrides: load_recipe(path, overrides)


def test_lock(recipe) -> None:
    value = lock(recipe("seed=3"), run_key="cd", device="cpu", hashes={"model": "ab"})
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert (value["format"], value["seed"], value["hashes"]) == (5, 3, {"model": "ab"})
    assert all(value["packages"].values())
    assert value["run_key"] == "cd"
    assert sorted(value["code"]) == ["qplug", "qplug_plugins.baseline"]
    assert value["plugins"]["baseline"]["loaded"] is True
    assert value["machine"]["torch_threads"] == torch.get_num_threads()
    assert value["machine"]["device"] == "cpu"


def test_what_changes_a_result_changes_the_content(recipe) -> None:
    known = run_key(recipe(), installed(), "cpu")
    for override in (
        *("seed=1", "quantize.weights.bits=5", "data.calibration.images=16", "data.batch_size=8"),
        *("techniques.0.use=baseline.mse", "calibration.loss=none", "data.evaluation.images=9"),
    ):
        assert run_key(recipe(override), installed(), "cpu") != known, override
    assert run_key(recipe(), installed(), "cuda:0") != known


def test_what_changes_no_result_does_not(recipe) -> None:
    known = run_key(recipe(), installed(), "cuda:0")
    assert run_key(recipe("name=another", "paper.title=another"), installed(), "cuda:1") == known


def test_code_that_is_in_no_file_answers_for_no_other_run(recipe) -> None:
    registry = copy.copy(installed())
    base = registry.techniques["baseline.minmax"]
    registry.techniques = {"baseline.minmax": type("Typed", (base,), {"__module__": "__console__"})}
    assert run_key_if_known(recipe(), registry, "cpu") is None
    assert "__console__" not in lock(recipe(), run_key=None, device="cpu", hashes={}, registry=registry)["code"]


def test_what_other_plugins_bring_to_every_run_counts(recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter changes what can be quantized, a block what is learned, and a metric what is measured, unnamed."""
    (tmp_path / "newcomer.py").write_text("def build(module): ...\ndef measure(float_, quantized, labels): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    import newcomer

    known, found = run_key(recipe(), installed(), "cpu"), set()
    for more in (
        {"adapters": [*installed().adapters, Adapter("timm.layers:Strange", newcomer.build)]},
        {"blocks": [*installed().blocks, "newcomer:Block"]},
        {"metrics": {"new.one": Metric("one", functools.partial(newcomer.measure, labels=None))}},
    ):
        registry = copy.copy(installed())
        vars(registry).update(more)
        found.add(run_key(recipe(), registry, "cpu"))
    assert known not in found


def test_code_is_that_of_every_class_that_an_instance_derives_from() -> None:
    base = type("Base", (), {"__module__": "qplug_example.somewhere"})
    mine = type("Mine", (base, torch.nn.Module), {"__module__": "qplug_plugins.baseline.elsewhere"})
    with pytest.raises(InputError, match="no source files of 'qplug_example'"):
        code_of([mine()])
    assert sorted(code_of([torch.nn.Linear(1, 1), json.dumps, "qplug_plugins.baseline.ranges:Mse"])) == [
        "qplug",
        "qplug_plugins.baseline",
    ]


def written(folder: Path) -> dict:
    return json.loads((folder / "lock.json").read_text())


@pytest.mark.slow
def test_every_seed_is_measured_on_the_same_images(recipe, tmp_path: Path) -> None:
    """Otherwise neither a mean over seeds nor a test on the same images would be possible."""
    for seed in ("0", "1"):
        run(recipe(f"seed={seed}", *FEW), out=tmp_path / seed)
    one, other = (written(tmp_path / seed)["hashes"] for seed in ("0", "1"))
    assert one["evaluation_images"] == other["evaluation_images"]
    assert one["calibration_images"] != other["calibration_images"]


@pytest.mark.slow
def test_what_changes_during_a_run_makes_it_answer_for_no_other(recipe, tmp_path: Path, monkeypatch) -> None:
    """Otherwise figures of the old weights would be found by the content of the new ones."""
    version, zoo = ["1"], installed().models["zoo"]

    class Edits:
        def __init__(self, stage: str) -> None:
            self.stage = stage

        @hookimpl
        def qplug_observe(self, event: Event) -> None:
            if event.stage == self.stage:
                version[0] = "2"

    monkeypatch.setattr(zoo, "key", lambda self: {"version": version[0]})
    for stage, known in (("ranges", False), ("none", True)):
        result = run(recipe(*FEW), out=tmp_path / stage, observers=[Edits(stage)])
        assert (written(tmp_path / stage)["run_key"] is not None) == known
        assert any("changed during the run" in warning for warning in result.warnings) != known
