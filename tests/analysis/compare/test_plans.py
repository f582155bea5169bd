"""Differences between two plans."""

from __future__ import annotations

import pytest
from run_toys import decision

from qplug.analysis.compare.plans import plan_differences


def plan(*decisions):
    return {"decisions": list(decisions)}


def test_equal_plans_do_not_differ():
    assert plan_differences(plan(decision("a"), decision("b")), plan(decision("a"), decision("b"))) == []


def test_every_way_to_differ_is_named_in_model_order():
    ours = plan(decision("a"), decision("b"), decision("c"), decision("d", scale=[1.0, 4.0]), decision("e"))
    theirs = plan(
        decision("e", reason="elsewhere"),  # words alone are no difference
        decision("a", bits=6),
        decision("b", technique="toy.other"),
        decision("d", scale=[1.0, 1.0]),
        decision("f"),
    )
    found = {difference.site: difference for difference in plan_differences(ours, theirs)}
    assert {site: d.what for site, d in found.items()} == {
        "a": ("bits",),
        "b": ("technique",),
        "c": ("float",),
        "d": ("scale",),
        "f": ("float",),
    }
    assert list(found) == ["a", "b", "c", "d", "f"]
    assert found["d"].scale_ratio == pytest.approx(2.0)
    assert found["c"].theirs == found["f"].ours == "–"
    assert found["c"].scale_ratio is None
    assert found["a"].ours == "uniform 4 bits by toy.minmax, min-max"


def test_quantizers_of_other_kinds_have_no_comparable_scale_unless_they_have_a_step():
    regions = {"kind": "regions", "bits": 4, "step": 0.25, "regions": []}
    (found,) = plan_differences(plan(decision("a")), plan(decision("a", quantizer=regions)))
    assert found.what == ("quantizer", "scale")
    assert found.scale_ratio == pytest.approx(2.0)
