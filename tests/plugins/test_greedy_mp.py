"""Greedy MP against Eq. 10 by brute force, its targets, and choices that the paper leaves open."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings, strategies as st
from plugin_toys import make, uncounted
from pydantic import ValidationError
from qplug_plugins.mptq_vit import GreedyMp

from qplug.core.types import QuantSpec, Site, SiteKind
from qplug.quantization.sqnr_table import SqnrTable


def site(index: int, numel: int, weight: bool = True) -> Site:
    kind = SiteKind.LINEAR_WEIGHT if weight else SiteKind.LINEAR_INPUT
    role = "weight" if weight else "input"
    return Site(f"layer{index}.{role}", kind, f"layer{index}", role, (numel,))


def table(sites: list[Site], sqnr: dict[str, list[float]]) -> SqnrTable:
    """``sqnr[name][b]`` is the SQNR in dB at b bits."""
    specs = {s.name: QuantSpec(8) for s in sites}
    return SqnrTable(sites, specs, lambda s, bits: sqnr[s.name][bits], {}.__getitem__, uncounted)


def linear(sites: list[Site], slope: float = 6.0, offset: float = 0.0) -> SqnrTable:
    """6 dB a bit, as a uniform quantizer of uniform noise has."""
    return table(sites, {s.name: [slope * b + offset for b in range(9)] for s in sites})


def allocate(target: float, of: SqnrTable, **parameters) -> dict[str, int]:
    return dict(make(GreedyMp, weights=target, activations=target, **parameters).qplug_allocate_bits(table=of))


def mean(bits: dict[str, int], sites: list[Site], average: str = "elements") -> float:
    sizes = [s.numel if average == "elements" else 1 for s in sites]
    return sum(bits[s.name] * size for s, size in zip(sites, sizes, strict=True)) / sum(sizes)


def brute_force(sites: list[Site], sqnr: dict[str, list[float]], least: int = 2, metric: str = "product") -> list[int]:
    """Every single-bit reduction in the paper's order: each time look at all layers and take the largest alpha."""
    bits = [8] * len(sites)
    order = []
    while any(b > least for b in bits):
        best, choice = -math.inf, -1
        for i, s in enumerate(sites):
            if bits[i] > least:
                value = sqnr[s.name][bits[i] - 1]
                alpha = value * math.log(s.numel) if metric == "product" else value
                if alpha > best:
                    best, choice = alpha, i
        bits[choice] -= 1
        order.append(choice)
    return order


def observed(sites: list[Site], sqnr: dict[str, list[float]], **parameters) -> list[int]:
    """The order of reductions, seen by lowering the target by one layer's bit at a time."""
    order, before = [], {s.name: 8 for s in sites}
    least = parameters.get("min_bits", 2)
    for step in range(1, (8 - least) * len(sites) + 1):
        now = allocate(8 - step / len(sites), table(sites, sqnr), average="layers", **parameters)
        changed = [i for i, s in enumerate(sites) if now[s.name] != before[s.name]]
        assert len(changed) == 1
        assert now[sites[changed[0]].name] == before[sites[changed[0]].name] - 1
        order.append(changed[0])
        before = now
    return order


SITES = [site(0, 100), site(1, 4000), site(2, 30), site(3, 900)]
SQNR = {
    "layer0.weight": [0.0, 0.0, 3.0, 7.0, 12.0, 19.0, 26.0, 33.0, 40.0],
    "layer1.weight": [0.0, 0.0, 1.0, 3.0, 6.0, 11.0, 15.0, 21.0, 28.0],
    "layer2.weight": [0.0, 0.0, 6.0, 13.0, 22.0, 29.0, 33.0, 41.0, 49.0],
    "layer3.weight": [0.0, 0.0, 2.0, 8.0, 13.0, 18.0, 25.0, 31.0, 38.0],
}


def test_the_order_by_hand():
    """alpha at 7 bits: 152.0, 174.2, 139.5, 210.9; so layer 3 first, then (alpha 170.1 left) layer 1, and so on."""
    assert observed(SITES, SQNR)[:3] == [3, 1, 3]


@pytest.mark.parametrize("metric", ["product", "sqnr"])
@pytest.mark.parametrize("least", [2, 4])
def test_the_order_is_the_paper_s(metric, least):
    ours = observed(SITES, SQNR, metric=metric, min_bits=least)
    assert ours == brute_force(SITES, SQNR, least, metric)
    assert len(ours) == (8 - least) * len(SITES)


def test_supplement_b_orders_in_another_way():
    assert observed(SITES, SQNR, metric="sqnr") != observed(SITES, SQNR)


tables = st.lists(
    st.tuples(st.integers(2, 10**7), st.lists(st.floats(0.0, 60.0), min_size=9, max_size=9)), min_size=1, max_size=5
)


@given(tables)
@settings(max_examples=40, deadline=None)
def test_the_order_is_the_paper_s_on_any_table(rows):
    sites = [site(i, numel) for i, (numel, _) in enumerate(rows)]
    sqnr = {s.name: values for s, (_, values) in zip(sites, rows, strict=True)}
    assert observed(sites, sqnr) == brute_force(sites, sqnr)


@given(tables, st.floats(2.0, 8.0), st.sampled_from(["elements", "layers"]))
@settings(max_examples=150, deadline=None)
def test_the_average_is_reached_from_below_by_less_than_a_step(rows, target, average):
    sites = [site(i, numel) for i, (numel, _) in enumerate(rows)]
    sqnr = {s.name: values for s, (_, values) in zip(sites, rows, strict=True)}
    bits = allocate(target, table(sites, sqnr), average=average)
    reached = mean(bits, sites, average)
    assert reached <= target + 1e-8
    order = brute_force(sites, sqnr)
    taken = sum(8 - b for b in bits.values())
    if taken:  # with one reduction less, the target was not reached
        last = sites[order[taken - 1]]
        step = last.numel / sum(s.numel for s in sites) if average == "elements" else 1 / len(sites)
        assert reached + step > target - 1e-8
    assert all(2 <= b <= 8 for b in bits.values())


def test_elements_and_layers_count_differently():
    sites = [site(0, 1000), site(1, 10), site(2, 10)]
    by_elements = allocate(7.0, linear(sites), average="elements")
    by_layers = allocate(7.0, linear(sites), average="layers")
    assert by_elements == {"layer0.weight": 6, "layer1.weight": 8, "layer2.weight": 8}  # 7 for it alone is one too many
    assert by_layers == {"layer0.weight": 5, "layer1.weight": 8, "layer2.weight": 8}


@pytest.mark.parametrize("target", [8.0, 6.0, 5.0, 2.0])
def test_equal_layers_reach_the_average_exactly(target):
    sites = [site(i, 64) for i in range(6)]
    assert mean(allocate(target, linear(sites)), sites) == target


@pytest.mark.parametrize("least", [2, 3, 5])
def test_no_site_goes_below_min_bits(least):
    sites = [site(0, 10**6), site(1, 8), site(2, 8)]
    bits = allocate(float(least), linear(sites), min_bits=least)
    assert set(bits.values()) == {least}
    lopsided = allocate(least + 0.5, linear(sites), min_bits=least, average="layers")
    assert min(lopsided.values()) == least  # the large layer is exhausted first
    assert lopsided["layer0.weight"] == least


def test_an_average_below_min_bits_is_refused():
    with pytest.raises(ValidationError, match="min_bits = 4 cannot be reached"):
        make(GreedyMp, weights=5.0, activations=3.5, min_bits=4)


def test_ties_go_to_the_site_that_the_model_computes_first():
    sites = [site(i, 64) for i in range(4)]
    assert observed(sites, {s.name: [6.0 * b for b in range(9)] for s in sites})[:6] == [0, 1, 2, 3, 0, 1]


def test_where_sqnr_is_negative_large_layers_still_go_first():
    """Eq. 10 as printed would prefer the small one there: −3·log(10) > −3·log(10^6)."""
    sites = [site(0, 10), site(1, 10**6)]
    sqnr = {s.name: [-3.0] * 9 for s in sites}
    assert observed(sites, sqnr)[:6] == [1] * 6
    assert brute_force(sites, sqnr)[0] == 0


def test_a_negative_sqnr_comes_after_any_positive_one():
    sites = [site(0, 10**6), site(1, 10)]
    sqnr = {"layer0.weight": [-0.1] * 9, "layer1.weight": [0.1] * 9}
    assert observed(sites, sqnr)[:6] == [1] * 6


def test_a_site_that_loses_nothing_goes_first():
    sites = [site(0, 10**6), site(1, 1)]
    sqnr = {"layer0.weight": [30.0] * 9, "layer1.weight": [math.inf] * 9}
    assert observed(sites, sqnr)[:6] == [1] * 6


def test_weights_and_activations_have_separate_targets():
    sites = [site(i, 64, weight) for i in range(3) for weight in (True, False)]
    technique = make(GreedyMp, weights=3.0, activations=6.0)
    bits = technique.qplug_allocate_bits(table=linear(sites))
    assert {bits[s.name] for s in sites if s.kind.is_weight} == {3}
    assert {bits[s.name] for s in sites if not s.kind.is_weight} == {6}


def test_the_table_computes_no_more_than_the_reductions_need():
    sites = [site(i, 64) for i in range(5)]
    calls = []
    specs = {s.name: QuantSpec(8) for s in sites}
    of = SqnrTable(sites, specs, lambda s, b: calls.append((s.name, b)) or 6.0 * b, {}.__getitem__, uncounted)
    allocate(7.0, of)
    assert len(calls) == len(set(calls)) == 10  # each at 7 bits, and once more after each of five reductions
    assert {b for _, b in calls} == {7, 6}


def test_nothing_to_allocate_is_no_error():
    assert allocate(4.0, linear([])) == {}
