"""Figures, output and refusals of ``qplug bench``. A benchmark measures the speed itself."""

from __future__ import annotations

import json
import sys

import pytest
from deploy_toys import digits_run

from qplug.cli import main
from qplug.cli.report.bench import bench_summary, bench_tables
from qplug.export.bench import Bench
from qplug.export.operator_times import Profile, Share, shares
from qplug.export.speed import Race, Spread


def event(name, operator, kind, microseconds):
    shapes = [{kind: [1, 2]}, {"float": []}]
    return {"cat": "Node", "name": name, "dur": microseconds, "args": {"op_name": operator, "input_type_shape": shapes}}


def test_shares_leave_out_the_first_call_and_separate_integers_from_floats():
    events = [{"cat": "Session", "name": "model_run", "dur": 9}]
    for microseconds in (1000, 10, 30):
        events.append(event("a_kernel_time", "MatMulIntegerToFloat", "uint8", microseconds))
        events.append(event("b_kernel_time", "MatMulIntegerToFloat", "uint8", microseconds))
        events.append(event("c_kernel_time", "Add", "float", microseconds / 10))
        events.append(event("c_fence_before", "Add", "float", 5))
    product, add = shares(events, calls=2)
    assert (product.operator, product.integer, product.nodes) == ("MatMulIntegerToFloat", True, 2)
    assert product.seconds == pytest.approx(40e-6)
    assert (add.operator, add.integer, add.nodes, add.seconds) == ("Add", False, 1, pytest.approx(2e-6))
    assert Profile(1, [product, add]).float_share == pytest.approx(2 / 42)


def test_the_ratio_is_of_each_round():
    race = Race(4, 2, (1.0, 4.0, 9.0), (1.0, 2.0, 3.0))
    assert race.ratio == Spread(1.5, 2.0, 2.5)
    assert race.quantized_spread.median == 2.0


def test_the_table_states_formats_sizes_and_ratio():
    races = (Race(4, 2, (1.0, 4.0, 9.0), (1.0, 2.0, 3.0)),)
    profiles = (Profile(4, [Share("MatMulIntegerToFloat", True, 3, 0.75), Share("Gelu", False, 1, 0.25)]),)
    found = Bench("runs/a", "onnx-integer", "ONNX Runtime 9", (8.0, 2.0), races, profiles)
    latency, operators = bench_tables(found)
    assert latency.rows == [("4", "2", "4000.00", "2000.00", "1.0", "2.0", "2.00", "1.50–2.50")]
    assert latency.notes[1].startswith("ONNX Runtime 9, onnx-integer against float32")
    assert latency.notes[2] == "not compared with the simulation; 'qplug export runs/a --format onnx-integer' compares"
    assert bench_summary(found)["compared"] is False
    assert operators.rows[1] == ("Gelu", "float", "1", "250.00", "25.0%")
    assert operators.notes[0].startswith("operators with float inputs take 25% of the time")
    assert bench_summary(found)["batches"][0]["quantized.images_per_second"] == 2.0


@pytest.mark.slow
def test_bench_prints_one_json_object(tmp_path, capsys):
    folder = digits_run(tmp_path / "int8")
    with pytest.raises(SystemExit) as end:
        main(["bench", str(folder), "--batch", "1,4", "--rounds", "3", "--profile", "--json"])
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["batch"], one["threads"], one["rounds"]) for one in found["batches"]] == [(1, 1, 3), (4, 1, 3)]
    assert all(one["ratio"] > 0 for one in found["batches"])
    assert found["runtime"].startswith("ONNX Runtime 1.")
    assert found["size_mb"]["quantized"] < found["size_mb"]["float"]
    for one in found["profiles"]:
        assert sum(row["share"] for row in one["operators"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "expected sizes such as 1,32, received '0'"),
        (["--batch", "a"], "expected sizes such as 1,32, received 'a'"),
        (["--format", "torch"], "expected one of onnx-qdq, onnx-integer, received 'torch'"),
        ([], "there is no such run folder"),
    ],
)
def test_wrong_input_is_refused(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", str(tmp_path / "none"), *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_extra_names_the_command_that_installs_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit) as end:
        main(["bench", str(tmp_path)])
    assert end.value.code == 2
    assert "pip install 'qplug[export]'" in capsys.readouterr().err
