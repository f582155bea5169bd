"""Saturation of 16-bit sums is named as a cause only where it can be one."""

from __future__ import annotations

import pytest
import torch

from qplug.core.types import QuantSpec, Site, SiteKind
from qplug.export.cpu import may_saturate
from qplug.export.parity.differences import OutputDifference
from qplug.export.parity.fused import FUSED
from qplug.export.parity.refusal import suspects
from qplug.export.parity.result import Parity
from qplug.quantization.plan import Decision, Plan
from qplug.quantization.quantizers import LogQuantizer, Quantizer, UniformQuantizer


def uniform(bits: int, signed: bool = True) -> UniformQuantizer:
    return UniformQuantizer(torch.ones(()), None, bits, signed)


def plan_of(**operations: dict[str, Quantizer]) -> Plan:
    """Operation → role → quantizer."""
    kinds = {
        "weight": SiteKind.LINEAR_WEIGHT,
        "input": SiteKind.LINEAR_INPUT,
        "lhs": SiteKind.QUERY,
        "rhs": SiteKind.KEY,
    }
    plan = Plan()
    for name, roles in operations.items():
        for role, quantizer in roles.items():
            site = Site(f"{name}.{role}", kinds[role], name, role, (4, 4))
            plan.decisions[site.name] = Decision(site, QuantSpec(quantizer.bits), quantizer, "t", "", "")
    return plan


@pytest.mark.parametrize(
    ("weight", "inputs", "expected"),
    [(8, 8, True), (7, 8, False), (8, 7, False), (4, 8, False), (8, 4, False), (16, 8, False), (8, 16, False)],
)
def test_only_two_operands_of_8_bits_may_saturate(weight, inputs, expected):
    linear = {"weight": uniform(weight), "input": uniform(inputs, signed=False)}
    attention = {"lhs": uniform(inputs), "rhs": uniform(weight)}
    plan = plan_of(fc=linear, qk=attention)
    assert [may_saturate(plan, name) for name in ("fc", "qk")] == [expected, expected]


def test_operands_in_float_or_of_other_numbers_do_not_saturate():
    log = LogQuantizer(1.0, 1, 8)
    plan = plan_of(
        weight_only={"weight": uniform(8)},
        input_only={"input": uniform(8)},
        log={"weight": uniform(8), "input": log},
        norm={"input": uniform(8)},
    )
    assert not any(may_saturate(plan, name) for name in plan.modules())


def wrong(place: tuple[str, str], joined: list[str] | None = None) -> Parity:
    """A comparison whose first difference is ``place``."""
    parity = Parity(images=2, joined=joined or [])
    bad = OutputDifference(1e-6)
    bad.add(torch.ones(2, 3), torch.zeros(2, 3))
    if place[1] == FUSED:
        parity.fused[place[0]] = bad
    else:
        parity.places[place] = bad
    return parity


@pytest.mark.parametrize(
    ("place", "joined", "expected"),
    [
        (("a", "output"), [], ["a"]),
        (("a", "input"), [], []),
        (("a", "input"), ["b"], ["b"]),
        (("", "output"), [], []),
        (("a", FUSED), [], ["a", "b"]),
    ],
)
def test_the_operations_that_may_be_the_cause(place, joined, expected):
    plan = plan_of(a={"weight": uniform(8)}, b={"weight": uniform(8)})
    assert list(suspects(wrong(place, joined), plan)) == expected
