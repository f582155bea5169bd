"""Tables and picture of analyses that are made by hand."""

from __future__ import annotations

import pytest

from qplug.analysis.ranges.activations import ActivationRange
from qplug.analysis.ranges.analyze import ModelAnalysis, RangeAnalysis, RangesRequest
from qplug.analysis.ranges.mixing import MixerTrace
from qplug.cli.report.analysis import analysis_tables, over_all
from qplug.cli.report.analysis_picture import draw
from qplug.core.types import Change
from qplug.quantization.calibration.hessian import Trace


def one(name, largest, position, kind="linear_input"):
    return ActivationRange(name, kind, position, -largest, 1.0, -0.5, 0.5, largest, 0.75)


BEFORE = [one("a.input", 2.0, 0.0), one("b.input", 40.0, 0.5), one("blocks.0", 3.0, 1.0, "block_output")]
AFTER = [one("a.input", 2.0, 0.0), one("b.0.input", 4.0, 0.5), one("blocks.0", 3.5, 1.0, "block_output")]
MIXING = [
    MixerTrace("blocks.0", 1.0, "token", ("t",), Trace(8.0, 2.0, 9, 4)),
    MixerTrace("blocks.0", 1.0, "channel", ("c",), Trace(4.0, 0.8, 9, 8)),
]


def analysis(probes=9):
    looks = {
        "before": ModelAnalysis("toy", [], BEFORE, MIXING if probes else []),
        "after": ModelAnalysis(
            "r.yaml", [Change("b", "toy.split", True, "one → many")], AFTER, MIXING if probes else []
        ),
    }
    return RangeAnalysis("toy", "ab" * 32, RangesRequest(hessian_probes=probes), 3, looks, {"total": 1.0})


def test_before_and_after_stand_side_by_side():
    table = analysis_tables(analysis(0))[0]
    assert table.rows == [
        ("a.input", "linear_input", "0.0", "2.00", "2.00", "0.75", "0.75"),
        ("b.input", "linear_input", "50.0", "40.00", "", "0.75", ""),
        ("b.0.input", "linear_input", "50.0", "", "4.00", "", "0.75"),
        ("blocks.0", "block_output", "100.0", "3.00", "3.50", "0.75", "0.75"),
    ]
    assert "1 × toy.split: one → many" in table.plain()


def test_traces_are_per_parameter():
    _, before, after = analysis_tables(analysis())
    assert before.rows == [("blocks.0", "100.0", "2.00e+00", "5e-01", "5.00e-01", "1e-01", "4.0")]
    assert after.title.endswith("of toy, after")
    assert over_all(MIXING, "token") == 2.0
    assert "all blocks: token mixers 2.00e+00, channel mixers 5.00e-01; ratio 4.0" in before.plain()


@pytest.mark.slow
def test_pictures_are_labelled():
    text = draw(analysis(), "svg").decode()
    for words in ("largest |x|", "position, % of the depth", "nats / weight", "token-mixing", "the model's own"):
        assert f"<!-- {words}" in text or words in text
    assert draw(analysis(0), "png").startswith(b"\x89PNG")
