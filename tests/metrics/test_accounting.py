"""Size, bit operations and mean bits against a count by hand."""

import pytest
import torch
from torch import nn

from qplug import Plan, QuantSpec, Site, SiteKind, UniformQuantizer
from qplug.metrics import BOPS_CONVENTION, account
from qplug.plan import Decision


def plan_of(*rows):
    """A plan of (module, role, kind, shape, macs, bits, scales)."""
    plan = Plan()
    for module, role, kind, shape, macs, bits, scales in rows:
        site = Site(f"{module}.{role}", kind, module, role, shape, macs)
        quantizer = UniformQuantizer(
            torch.full((scales, 1), 0.1) if scales > 1 else torch.tensor(0.1), None, bits, True
        )
        plan.decisions[site.name] = Decision(site, QuantSpec(bits), quantizer, "toy", "", "recipe")
    return plan


A_MACS, B_MACS, MATMUL, ELSEWHERE = 5 * 8 * 6, 5 * 6 * 4, 1000, 300


@pytest.fixture
def counted():
    """Two linears (the second in float but for its input), a matmul, a norm's input, and macs without a site."""
    model = nn.ModuleDict({"a": nn.Linear(8, 6), "b": nn.Linear(6, 4), "n": nn.LayerNorm(6)})
    plan = plan_of(
        ("a", "weight", SiteKind.LINEAR_WEIGHT, (6, 8), A_MACS, 3, 6),
        ("a", "input", SiteKind.LINEAR_INPUT, (5, 8), A_MACS, 8, 1),
        ("n", "input", SiteKind.LAYERNORM_INPUT, (5, 6), 0, 6, 1),
        ("b", "input", SiteKind.POST_LAYERNORM, (5, 6), B_MACS, 4, 1),
        ("m", "lhs", SiteKind.QUERY, (2, 5, 3), MATMUL, 5, 1),
        ("m", "rhs", SiteKind.KEY, (2, 5, 3), MATMUL, 7, 1),
    )
    plan.total_macs = A_MACS + B_MACS + MATMUL + ELSEWHERE
    plan.float_macs = {"b": B_MACS, "c": ELSEWHERE}
    return account(model, plan)


def test_size_is_codes_and_scales_and_the_rest_in_float(counted):
    rest = 6 + (24 + 4) + 12  # a's bias, b, the norm
    assert counted["size_mb"] == pytest.approx((48 * 3 + 6 * 32 + rest * 32) / 8e6)
    assert counted["float.size_mb"] == pytest.approx((48 + rest) * 4 / 1e6)


def test_bit_operations(counted):
    expected = A_MACS * 3 * 8 + MATMUL * 5 * 7 + B_MACS * 4 * 32 + ELSEWHERE * 32 * 32
    assert counted["bops_g"] == pytest.approx(expected / 1e9)
    assert counted["float.bops_g"] == pytest.approx((A_MACS + B_MACS + MATMUL + ELSEWHERE) * 1024 / 1e9)
    assert "attention" in BOPS_CONVENTION


def test_mean_bits_are_over_elements(counted):
    assert counted["bits.weights_mean"] == 3.0
    elements = (40 * 8, 30 * 6, 30 * 4, 30 * 5, 30 * 7)
    assert counted["bits.activations_mean"] == pytest.approx(sum(elements) / (40 + 4 * 30))


def test_coverage(counted):
    assert counted["coverage.macs"] == pytest.approx((A_MACS + MATMUL) / (A_MACS + B_MACS + MATMUL + ELSEWHERE))


def test_nothing_quantised_costs_what_the_float_model_costs():
    plan = Plan(total_macs=100, float_macs={"a": 100})
    found = account(nn.Linear(8, 6), plan)
    assert found["size_mb"] == found["float.size_mb"] == 54 * 4 / 1e6
    assert found["bops_g"] == found["float.bops_g"]
    assert found["bits.weights_mean"] == found["bits.activations_mean"] == 32.0
    assert found["coverage.macs"] == 0.0
