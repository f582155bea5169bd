"""Bit allocation by integer programming, against exhaustive search and against the lower bound."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

import qplug.quantization.bit_allocation
from qplug import InputError, Limit, choose_bits

BITS = (4, 5, 6, 7, 8)


def problem(groups: int, seed: int, spread: float = 3.0, limits: int = 1, target: float = 6.0):
    """Costs that fall about fourfold per bit, of groups that differ by e^spread; limits of bits and BOPs."""
    draw = np.random.default_rng(seed)
    sizes, macs = (dict(enumerate(draw.integers(1, high, groups).tolist())) for high in (10**6, 10**9))
    scale = np.exp(draw.normal(0.0, spread, groups)) * list(sizes.values())
    table = scale[:, None] * 4.0 ** -np.array(BITS) * np.exp(draw.normal(0.0, 0.2, (groups, len(BITS))))
    costs = {str(i): dict(zip(BITS, row, strict=True)) for i, row in enumerate(table.tolist())}
    bits = Limit("bits", lambda g, b: b * sizes[int(g)], target * sum(sizes.values()))
    bops = Limit("BOPs", lambda g, b: b * b * macs[int(g)], (target**2 - 2) * sum(macs.values()))
    return costs, [bits, bops][:limits]


def total(costs, chosen) -> float:
    return sum(costs[group][bits] for group, bits in chosen.items())


def load(limit, chosen) -> float:
    return sum(limit.load(group, bits) for group, bits in chosen.items())


def least(costs, limits) -> float:
    """The least cost by exhaustive search."""
    choices = (dict(zip(costs, bits, strict=True)) for bits in itertools.product(*costs.values()))
    fitting = [c for c in choices if all(load(limit, c) <= limit.bound * (1 + 1e-9) for limit in limits)]
    return min((total(costs, c) for c in fitting), default=np.inf)


@pytest.mark.parametrize("limits", [1, 2])
@pytest.mark.parametrize("spread", [0.3, 3.0, 8.0])
@pytest.mark.parametrize("seed", range(10))
def test_the_choice_has_the_least_cost(seed, spread, limits):
    costs, within = problem(5, seed, spread, limits)
    chosen = choose_bits(costs, within)
    assert list(chosen) == list(costs)
    assert total(costs, chosen) <= least(costs, within) * (1 + 1e-6)
    assert all(load(limit, chosen) <= limit.bound * (1 + 1e-9) for limit in within)


rows = st.dictionaries(st.integers(2, 16), st.floats(0.0, 1e6), min_size=1, max_size=4)


@given(st.lists(st.tuples(rows, st.integers(1, 1000)), min_size=1, max_size=4), st.floats(2.0, 16.0))
@settings(max_examples=100)
@example([({2: 0.0, 3: 2.0, 4: 1.2e-7}, 1), ({2: 0.0}, 1)], 16.0)
def test_groups_may_have_different_candidates_and_unordered_costs(groups, target):
    """The solver ends within 1e-6 of the largest cost, so that costs which differ by less are alike to it."""
    costs = {f"g{i}": row for i, (row, _) in enumerate(groups)}
    sizes = {f"g{i}": size for i, (_, size) in enumerate(groups)}
    limit = Limit("bits", lambda g, b: b * sizes[g], target * sum(sizes.values()))
    want = least(costs, [limit])
    if want == np.inf:
        with pytest.raises(InputError, match="the candidates need at least"):
            choose_bits(costs, [limit])
        return
    chosen = choose_bits(costs, [limit])
    assert total(costs, chosen) <= want * (1 + 1e-6) + 1e-6 * max(max(row.values()) for row in costs.values()) + 1e-9
    assert all(bits in costs[group] for group, bits in chosen.items())


def test_a_limit_can_be_met_exactly():
    costs = {f"g{i}": {b: 4.0**-b for b in BITS} for i in range(12)}
    limit = Limit("bits", lambda g, b: b, 6 * 12)
    assert set(choose_bits(costs, [limit]).values()) == {6}


def test_groups_without_load_are_unlimited():
    costs = {name: {b: 4.0**-b for b in BITS} for name in ("weight", "activation")}
    limit = Limit("weights", lambda g, b: b if g == "weight" else 0.0, 5.0)
    assert choose_bits(costs, [limit]) == {"weight": 5, "activation": 8}


def test_useless_bits_are_not_chosen():
    """The cost may rise with the bits; a width without cost is optimal."""
    costs = {"lossless": {4: 0.0, 8: 0.0}, "odd": {4: 1.0, 6: 0.5, 8: 2.0}}
    limit = Limit("bits", lambda g, b: b, 100.0)
    assert choose_bits(costs, [limit])["odd"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("groups", [400, 4000])
def test_many_groups_are_close_to_the_lower_bound(groups):
    costs, (limit,) = problem(groups, seed=0)
    chosen = choose_bits(costs, [limit])
    cost = np.array([list(row.values()) for row in costs.values()])
    loads = np.array([[limit.load(g, b) / limit.bound for b in row] for g, row in costs.items()])
    bounds = [(cost + price * loads).min(1).sum() - price for price in np.geomspace(1e-3, 1e3, 2000) * cost.max()]
    assert load(limit, chosen) <= limit.bound * (1 + 1e-9)
    assert total(costs, chosen) <= max(bounds) * (1 + 1e-4)  # measured: 1.00001 at 400 groups, 1.000002 at 4,000


@pytest.mark.slow
@pytest.mark.parametrize("limits", [1, 2])
def test_ten_thousand_groups_need_few_extra_candidates(limits, monkeypatch):
    searched = []
    search = qplug.quantization.bit_allocation._search
    monkeypatch.setattr(
        qplug.quantization.bit_allocation,
        "_search",
        lambda c, w, candidate, unit: searched.append(candidate.sum() - len(c)) or search(c, w, candidate, unit),
    )
    costs, within = problem(10_000, 0, limits=limits)
    chosen = choose_bits(costs, within)
    assert max(searched) <= 2000
    assert all(load(limit, chosen) <= limit.bound * (1 + 1e-9) for limit in within)


def test_a_limit_that_is_too_low_is_named_with_the_least_load():
    costs, (limit,) = problem(3, seed=0, target=3.0)
    with pytest.raises(InputError, match=r"at least .*, and the limit is ") as error:
        choose_bits(costs, [limit])
    assert error.value.where == "bits"
    assert "raise the limit" in error.value.fix


def test_incompatible_limits_are_named():
    costs = {"a": {4: 1.0, 8: 1.0}}
    low, high = Limit("low", lambda g, b: b, 4.0), Limit("high", lambda g, b: 12 - b, 4.0)
    with pytest.raises(InputError, match="not all of them at once") as error:
        choose_bits(costs, [low, high])
    assert error.value.where == "low, high"


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_cost_that_is_not_finite_is_refused(wrong):
    with pytest.raises(InputError, match="finite"):
        choose_bits({"a": {4: wrong, 8: 1.0}}, [Limit("bits", lambda g, b: b, 8.0)])


def test_no_groups_give_an_empty_choice():
    assert choose_bits({}, [Limit("bits", lambda g, b: b, 1.0)]) == {}


@pytest.mark.slow
def test_standard_output_is_silent_and_restored(capfd):
    for groups, seed in ((40, 5), (120, 5)):  # two of the few at which the HiGHS of scipy 1.17.1 prints
        choose_bits(*problem(groups, seed, spread=1.0, limits=2))
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == ""
    print("still here", flush=True)
    assert capfd.readouterr().out == "still here\n"


def test_a_limit_without_slack_leaves_only_the_least_loads():
    """Loads of 1e-5 of the limit are within milp's tolerances."""
    macs = {"a": 2, "b": 2, "c": 2, "d": 200_000, "e": 1}
    costs = {group: {2: 1.0, 4: 0.5, 8: 0.0} for group in macs}
    bops = Limit("BOPs", lambda g, b: b * b * macs[g], 4.0 * sum(macs.values()))
    bits = Limit("bits", lambda g, b: float(b), 40.0)
    assert choose_bits(costs, [bits, bops]) == dict.fromkeys(macs, 2)
