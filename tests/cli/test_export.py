"""Output of ``qplug export`` for people and for programs."""

from __future__ import annotations

import json
import re

import pytest
from export_toys import digits_run

from qplug.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return digits_run(tmp_path_factory.mktemp("digits") / "run")


def export(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["export", *arguments])
    assert end.value.code == 0


def test_it_prints_size_and_agreement(run, tmp_path, capsys):
    export(str(run), "--out", str(tmp_path / "model.onnx"), "--images", "6")
    shown = capsys.readouterr().out
    shown = re.sub(" +", " ", shown)
    assert "compared 6 evaluation images, in batches of 1 and 4 and 2" in shown
    assert "top-1 agreement with the simulation 100.00 %" in shown
    assert "times less than float's weights" in shown
    assert "Places" not in shown


def test_layers_and_json(run, tmp_path, capsys):
    export(str(run), "--out", str(tmp_path / "model.onnx"), "--images", "4", "--layers", "--json")
    said = json.loads(capsys.readouterr().out)
    assert said["status"] == "done"
    assert said["bytes"] == (tmp_path / "model.onnx").stat().st_size
    assert said["parity"]["top1_agreement"] == 1.0
    assert len(said["places"]) == 2 * (4 * 4 + 2) + 4 * 6 + 1
    assert max(place["norm"] for place in said["places"]) < 1e-3
