"""What no count knows is never called 100 %."""

from qplug.analysis.inspect import Inspection
from qplug.cli.report.inspection import inspection_summary, inspection_tables
from qplug.cli.report.run import number
from qplug.quantization.accounting import CONVENTIONS, DEFAULT

COSTS = {DEFAULT: {"W8A8": {"size_mb": 1.0, "bops_g": 2.0, "float.size_mb": 4.0, "float.bops_g": 32.0}}}


def notes(found):
    return inspection_tables(found, "net", CONVENTIONS[DEFAULT])[1].notes


def test_unknown_operators_and_passed_quantizers_are_named():
    found = Inspection(
        [],
        120,
        {},
        unknown={"body": "aten._fft_r2c"},
        bypassed={"fc.weight": "aten.mm in body reads it past fc"},
        costs=COSTS,
    )
    assert notes(found) == [
        "120 MACs for one image are counted; the share that can be quantized is unknown",
        "stays in float, in no count: body, aten._fft_r2c",
        "cannot be quantized: fc.weight, as aten.mm in body reads it past fc",
    ]
    summary = inspection_summary(found, "net")
    assert (summary["coverage"], summary["unknown_macs"]) == (None, {"body": "aten._fft_r2c"})
    assert summary["bypassed"] == found.bypassed


def test_a_known_share_is_a_number():
    assert (
        notes(Inspection([], 120, {"a": 30}, costs=COSTS))[0]
        == "120 MACs for one image; 75.0 % of them can be quantized"
    )


def test_a_figure_that_outputs_do_not_define_is_no_number():
    assert number(float("nan"), "dB") == "not defined"
    assert number(None) == "–"
