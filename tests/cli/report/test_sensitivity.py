"""Tables, values and picture of measurements that are made by hand."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import matplotlib
import pytest
import torch

from qplug import QuantSpec, Site, SiteKind, UniformQuantizer
from qplug.analysis.sensitivity.measure import Sensitivity, SensitivityRequest, SiteSensitivity, rank_correlations
from qplug.analysis.sensitivity.single import Effect
from qplug.cli.report.sensitivity import ranked, sensitivity_summary, sensitivity_tables
from qplug.cli.report.sensitivity_picture import draw, grid
from qplug.core.storage.run_folder import to_json
from qplug.quantization.calibration.hessian import Trace
from qplug.quantization.plan import Decision


def one(name, kind, sqnr, agreeing, noise, trace=None):
    site = Site(name, SiteKind(kind), name.rpartition(".")[0], name.rpartition(".")[2], (2, 3))
    decision = Decision(site, QuantSpec(4), UniformQuantizer(torch.tensor(0.5), None, 4, True), "toy.minmax", "", "")
    found = Trace(trace, 0.25, 8, 6) if trace is not None else None
    return SiteSensitivity(decision, {8: sqnr + 20, 4: sqnr}, Effect(50, agreeing, 100.0, noise), found, 0.5)


SITES = [
    one("patch.weight", "conv_weight", 30.0, 50, 0.01, 1.0),
    one("blocks.0.fc.weight", "linear_weight", 20.0, 40, 1.0, 12.0),
    one("blocks.0.fc.input", "post_gelu", 10.0, 45, 0.5),
    one("blocks.1.fc.weight", "linear_weight", 25.0, 40, 10.0, -3.0),
    one("blocks.1.fc.input", "post_gelu", 12.0, 50, 0.0),
    one("head.input", "linear_input", 15.0, 44, 2.0),
]


def result(sites=SITES, **more):
    request = SensitivityRequest(bits=(8, 4), hessian_probes=8)
    values = {
        "images": {"calibration": 32, "evaluation": 50},
        "correlations": rank_correlations(sites),
        "seconds": {"load": 1.0, "total": 2.5},
        "warnings": ["be careful"],
    }
    return Sensitivity("toy", "ab" * 32, request, ["toy.minmax"], sites=sites, **values | more)


def test_the_most_sensitive_come_first_and_equal_drops_go_by_the_logits():
    assert [m.site.name for m in ranked(result())] == [
        "blocks.1.fc.weight",
        "blocks.0.fc.weight",
        "head.input",
        "blocks.0.fc.input",
        "patch.weight",
        "blocks.1.fc.input",
    ]


def test_the_table_of_sites():
    sites, _ = sensitivity_tables(result(), top=3)
    assert sites.title == "Sensitivity of toy, the 3 most sensitive of 6"
    assert sites.columns == (
        *("site", "kind", "top-1 changed (%)", "logit SQNR (dB)", "SQNR at 8 bits (dB)", "SQNR at 4 bits (dB)"),
        *("Hessian trace", "± error", "trace per parameter", "HAWQ score"),
    )
    assert sites.rows[0] == (
        *("blocks.1.fc.weight", "linear_weight", "20.0", "10.0", "45.0", "25.0"),
        *("-3", "0.2", "-5.00e-01", "-2.50e-01"),
    )
    assert sites.rows[2] == ("head.input", "linear_input", "12.0", "17.0", "35.0", "15.0", "", "", "", "")
    text = sites.plain()
    assert (
        "protocol: weights per channel symmetric, activations per tensor symmetric; quantizers by toy.minmax; " in text
    )
    assert "32 calibration images, 50 evaluation images; seed 0; inputs of Softmax and LayerNorm in float" in text
    assert "if only this site is quantized, at 4 bits" in text
    assert (
        "8 random vectors (the limit); ± error: standard error; L = cross-entropy against the float model's own top-1"
        in text
    )
    settled = result()
    settled.request = SensitivityRequest(bits=(8, 4), hessian_probes=9)
    assert "8 random vectors (the estimates have settled)" in sensitivity_tables(settled)[0].plain()
    everything, _ = sensitivity_tables(result())
    assert everything.title == "Sensitivity of toy"
    assert len(everything.rows) == 6


def test_without_a_hessian_its_columns_are_gone():
    sites, correlations = sensitivity_tables(result([s for s in SITES if s.trace is None]))
    assert len(sites.columns) == 6
    assert "trace" not in sites.plain()
    assert {row[0] for row in correlations.rows} == {"activations"}


def test_the_table_of_correlations():
    _, table = sensitivity_tables(result())
    rows = {row[:2]: row[2:] for row in table.rows}
    # drops 0, 0.2, 0.2 and SQNR 30, 20, 25: ranks 1, 2½, 2½ and 3, 1, 2
    assert rows["weights", "SQNR at 4 bits"][0] == f"{-1.5 / math.sqrt(1.5 * 2):+.2f}"
    assert rows["weights", "Hessian trace"][2] == "+0.50"  # ranks 2, 3, 1 and 3, 2, 1
    assert rows["activations", "SQNR at 8 bits"][0] == "+0.50"  # ranks 1, 2, 3 and 2, 1, 3
    assert rows["activations", "logit SQNR"] == ("-1.00", "0", "", "", "3")
    assert list(rows)[:2] == [("weights", "SQNR at 8 bits"), ("weights", "SQNR at 4 bits")]
    few = sensitivity_tables(result(SITES[:3]))[1]
    assert {row[2:6] for row in few.rows if row[1] != "logit SQNR"} == {("–", "–", "–", "–")}


def test_values_for_machines():
    value = json.loads(to_json(sensitivity_summary(result())))
    assert [site["name"] for site in value["sites"]] == [m.site.name for m in SITES]
    assert value["sites"][1] == {
        "name": "blocks.0.fc.weight",
        "kind": "linear_weight",
        "module": "blocks.0.fc",
        "shape": [2, 3],
        "quantizer": "uniform int4",
        "technique": "toy.minmax",
        "sqnr_db.8": 40.0,
        "sqnr_db.4": 20.0,
        "hessian.trace": 12.0,
        "hessian.per_parameter": 2.0,
        "hessian.hawq": 1.0,
        "drop": pytest.approx(0.2),
        "logit_sqnr_db": pytest.approx(20.0),
        "hessian.standard_error": 0.25,
        "hessian.probes": 8,
    }
    assert value["sites"][4]["logit_sqnr_db"] is None  # nothing was lost
    assert value["protocol"]["hessian"]["probes_at_most"] == 8
    assert "own top-1" in value["protocol"]["hessian"]["loss"]
    assert (value["protocol"]["bits"], value["protocol"]["drop_bits"]) == ([8, 4], 4)
    assert value["protocol"]["images"] == {"calibration": 32, "evaluation": 50}
    assert {c["n"] for c in value["correlations"]["weights"]} == {3}
    assert value["warnings"] == ["be careful"]


def test_the_grid_has_a_row_for_each_role_and_a_column_for_each_block():
    rows, columns, cells = grid(SITES)
    assert rows == [
        "patch.weight (conv_weight)",
        "fc.weight (linear_weight)",
        "fc.input (post_gelu)",
        "head.input (linear_input)",
    ]
    assert columns == ["–", "0", "1"]
    assert {place: m.site.name for place, m in cells.items()} == {
        (0, 0): "patch.weight",
        (1, 1): "blocks.0.fc.weight",
        (1, 2): "blocks.1.fc.weight",
        (2, 1): "blocks.0.fc.input",
        (2, 2): "blocks.1.fc.input",
        (3, 0): "head.input",
    }


def test_the_grid_separates_equal_endings_and_orders_nested_blocks():
    names = ["a.0.blocks.1.fc.weight", "a.0.blocks.0.fc.weight", "a.1.blocks.0.fc.weight", "b.0.fc.weight"]
    rows, columns, cells = grid([one(name, "linear_weight", 20.0, 50, 1.0) for name in names])
    assert rows == ["a.*.blocks.*.fc.weight (linear_weight)", "b.*.fc.weight (linear_weight)"]
    assert columns == ["0.1", "0.0", "1.0", "0"]  # in the model's order
    assert len(cells) == 4


@pytest.mark.parametrize(("format", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_picture_is_drawn_without_global_state(monkeypatch, format, start):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would fail
    parameters = matplotlib.rcParams.copy()
    assert draw(result(), format).startswith(start)
    assert matplotlib.rcParams.copy() == parameters


@pytest.mark.slow
@pytest.mark.parametrize(
    "sites",
    [
        SITES[:1],
        [s for s in SITES if s.trace is None],
        [one(f"b.{i}.w", "linear_weight", 9.0, 50, 0.0) for i in range(80)],
    ],
)
def test_few_many_and_equal_sites_can_be_drawn(sites):
    assert len(draw(result(sites), "png")) > 5000


def test_the_picture_names_measures_units_and_protocol():
    text = draw(result(), "svg").decode()
    for words in ("images whose top-1 changes, %", "SQNR of the logits, dB", "values at 4 bits, dB"):
        assert f"{words} -->" in text
    for words in ("toy: one site at 4 bits, everything else in float", "fc.input (post_gelu)", "17.0", "≤ 0"):
        assert f"<!-- {words}" in text


@pytest.mark.slow
def test_tables_need_no_matplotlib():
    modules = "qplug.cli.report.sensitivity, qplug.analysis.sensitivity.measure"
    code = f"import sys; import {modules}; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
