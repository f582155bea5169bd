"""HAWQ-V3: the programme against an exhaustive search, traces against exact ones, limits against a run's figures."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from paths import RECIPES
from plugin_toys import make
from pydantic import ValidationError
from qplug_plugins.hawq import HawqV3
from qplug_plugins.hawq.hawq_v3 import Slices, perturbation
from qplug_plugins.hawq.programme import Bound, solve
from ruamel.yaml import YAML
from torch import nn

import qplug
from qplug import InputError, QuantSpec, Site, SiteKind, SiteStats, SqnrTable, Trace
from qplug.hooks.registry import installed
from qplug.recipe import recipe_type
from qplug.testing.run import toy_run

# ResNet-18 without its first and last layer, from the authors' repository (ILP.ipynb): mean traces, squared errors of
# weights, parameters, MACs, and milliseconds on a T4.


def numbers(text: str) -> np.ndarray:
    return np.array(text.split(), dtype=np.float64)


TRACES = numbers("""
    0.06857826 0.03162379 0.03298575 0.01205663 0.02222431 0.00596336 0.06931772 0.00807129 0.00372905 0.00530698
    0.00209011 0.00737569 0.00210454 0.00151197 0.00158041 0.00078146 0.00451841 0.00098745 0.00072944
""")
ERRORS = {
    8: numbers("""
        0.0235 0.0125 0.0102 0.0082 0.0145 0.0344 0.0023 0.0287 0.0148 0.0333
        0.0682 0.0027 0.0448 0.0336 0.0576 0.1130 0.0102 0.0947 0.0532
    """),
    4: numbers("""
        6.7430 3.9691 3.3281 2.6796 4.7277 10.5966 0.6827 9.0942 4.8857 10.7599
        21.7546 0.8603 14.5324 10.9651 18.7706 36.4044 3.1572 29.6994 17.4016
    """),
}
SIZES = numbers("""
    36864 36864 36864 36864 73728 147456 8192 147456 147456 294912
    589824 32768 589824 589824 1179648 2359296 131072 2359296 2359296
""")
MACS = numbers("""
    115605504 115605504 115605504 115605504 57802752 115605504 6422528 115605504 115605504 57802752
    115605504 6422528 115605504 115605504 57802752 115605504 6422528 115605504 115605504
""")
LATENCIES = {
    4: numbers("""
        0.21094404 0.21092674 0.21104113 0.21086851 0.13642465 0.19167506 0.02532183 0.19148203 0.19142914 0.11395316
        0.20556011 0.01917474 0.20566918 0.20566509 0.13185102 0.22287786 0.01790088 0.22304611 0.22286099
    """),
    8: numbers("""
        0.36189111 0.36211718 0.31141909 0.30454471 0.19184896 0.38948934 0.0334169 0.38904905 0.3892859 0.19134735
        0.34307431 0.02802354 0.34313329 0.34310756 0.21117103 0.37376585 0.02896843 0.37398187 0.37405185
    """),
}
TAKES = {
    "size_mb": {b: SIZES * b / 8 / 2**20 for b in (4, 8)},
    "bops_g": {b: MACS * b * b / 1e9 for b in (4, 8)},
    "latency_ms": LATENCIES,
}


def resnet18(bounds: Mapping[str, Bound]) -> np.ndarray:
    """Which layers get 8 bits."""
    layers = [str(i) for i in range(19)]
    costs = {str(i): {b: float(TRACES[i] * ERRORS[b][i]) for b in (4, 8)} for i in range(19)}

    def totals(bits):
        return {name: float(sum(row[bits[i]][int(i)] for i in layers)) for name, row in TAKES.items()}

    return np.array([bits == 8 for bits in solve(costs, (4, 8), totals, bounds).values()])


@pytest.fixture(scope="module")
def every_choice():
    """(2^19, 19): which layers have 8 bits, and what each choice costs."""
    eight = (np.arange(2**19)[:, None] >> np.arange(19)) & 1
    gain = TRACES * (ERRORS[8] - ERRORS[4])
    return eight.astype(np.float64), eight @ gain


@pytest.mark.parametrize(
    "limits",
    [*({name: share} for name in TAKES for share in (0.0, 0.25, 0.5, 0.75, 1.0)), dict.fromkeys(TAKES, 0.5)],
    ids=str,
)
def test_resnet18_of_the_authors_against_all_its_524288_choices(limits, every_choice):
    eight, gain = every_choice
    fits = np.ones(len(eight), bool)
    for name, share in limits.items():
        few, many = TAKES[name][4], TAKES[name][8]
        taken, bound = few.sum() + eight @ (many - few), few.sum() + share * (many - few).sum()
        fits &= taken <= bound * (1 + 1e-9)
    best = gain[fits].min()
    chosen = resnet18({name: Bound(share, True) for name, share in limits.items()})
    assert chosen @ (TRACES * (ERRORS[8] - ERRORS[4])) == pytest.approx(best, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_least_of_all_choices_within_two_limits(seed):
    draw, candidates = np.random.default_rng(seed), (2, 4, 8)
    costs = {f"l{i}": dict(zip(candidates, sorted(draw.random(3) * 100.0**i)[::-1], strict=True)) for i in range(5)}
    sizes, macs, rest = draw.integers(1, 10**6, 5), draw.integers(1, 10**6, 5), float(draw.integers(1, 10**6))

    def totals(bits):
        widths = np.array(list(bits.values()))
        return {"size_mb": rest + float(widths @ sizes), "bops_g": rest + float(widths**2 @ macs)}

    least, most = (totals(dict.fromkeys(costs, bits)) for bits in (2, 8))
    bounds = {"size_mb": Bound(draw.random(), True), "bops_g": Bound(draw.random(), True)}
    caps = {name: bound.between(least[name], most[name]) for name, bound in bounds.items()}

    def total(bits):
        return sum(costs[layer][width] for layer, width in bits.items())

    def fits(bits):
        return all(value <= caps[name] * (1 + 1e-9) for name, value in totals(bits).items())

    choices = [dict(zip(costs, widths, strict=True)) for widths in itertools.product(candidates, repeat=5)]
    found = solve(costs, candidates, totals, bounds)
    assert fits(found)
    assert total(found) == pytest.approx(min(total(bits) for bits in choices if fits(bits)), rel=2e-6)


def test_a_limit_that_cannot_be_kept_says_the_least_that_is_possible():
    least = TAKES["size_mb"][4].sum()
    assert least == pytest.approx(5.3203, abs=1e-4)
    with pytest.raises(InputError, match=r"need at least 5\.32031, and the limit is 5") as caught:
        resnet18({"size_mb": Bound(5.0, False)})
    assert caught.value.where == "hawq.hawq_v3, size_mb"
    assert caught.value.exit_code == 2


def test_bounds_are_amounts_or_shares():
    assert Bound.parse(3.5).between(1.0, 9.0) == 3.5
    assert Bound.parse("25%").between(1.0, 9.0) == 3.0


@pytest.mark.slow
def test_traces_come_to_those_of_a_softmax_regression():
    """Its Hessian is the mean of (diag(p) − ppᵀ) ⊗ xxᵀ, whose trace is that of Σ p(1 − p)·‖x‖²."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4, bias=False).double()).eval()
    images = [torch.randn(9, 6, dtype=torch.float64) for _ in range(2)]
    x = torch.cat(images).numpy()
    logits = x @ model[0].weight.detach().numpy().T
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    exact = ((p * (1 - p)).sum(1) * (x**2).sum(1)).mean() / 24
    site = Site("0.weight", SiteKind.LINEAR_WEIGHT, "0", "weight", (4, 6), channel_axis=0)
    technique = make(HawqV3, size_mb="50%", probes=400, tolerance=0.0, slice_size=4)
    found = technique._traces(model, images, {"0": site})["0"]
    assert found == pytest.approx(exact, rel=0.03)  # measured: 0.4 %


def test_slices_hold_every_image_once_at_every_pass():
    images = [torch.arange(5.0), torch.arange(5.0, 7.0)]
    slices = Slices(images, 3)
    for _ in range(2):
        assert [part.tolist() for part in slices] == [[0, 1, 2], [3, 4], [5, 6]]


# on a table


def small(fixed_input: str = "") -> tuple[nn.Module, SqnrTable]:
    """Three linears, their inputs, a matmul operand; size and bit operations as sums over the table."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 3)).eval()
    sites, known = [], {}
    for name in ("0", "2", "4"):
        weight = model.get_submodule(name).weight
        site = Site(f"{name}.weight", SiteKind.LINEAR_WEIGHT, name, "weight", tuple(weight.shape), channel_axis=0)
        known[site] = SiteStats.from_tensor(weight, site)
        sites += [site, Site(f"{name}.input", SiteKind.LINEAR_INPUT, name, "input", (weight.shape[1],))]
    sites.append(Site("attn.lhs", SiteKind.QUERY, "attn", "lhs", (4,)))
    sites = [site for site in sites if site.name != fixed_input]

    def count(bits, accounting):
        assert accounting == "hawq"
        widths = {site: bits.get(site.name, 8) for site in known}
        return {
            "size_mb": sum(width * site.numel for site, width in widths.items()) / 8,
            "bops_g": sum(width * bits.get(f"{site.module}.input", 8) * site.numel for site, width in widths.items()),
        }

    specs = {site.name: QuantSpec(8) for site in sites}
    return model, SqnrTable(sites, specs, lambda s, b: 6.0 * b - 1.0, known.__getitem__, count)


@pytest.fixture
def traces(monkeypatch):
    """Traces by weight, each in the place of an estimate."""
    known = dict.fromkeys(("0.weight", "2.weight", "4.weight"), 1.0)

    def estimate(model, weights, *_, **__):
        return {name: Trace(known[name], 0.0, 2, model.get_parameter(name).numel()) for name in weights}

    monkeypatch.setattr(qplug, "hessian_traces", estimate)
    return known


def choose(model: nn.Module, table: SqnrTable, **parameters) -> Mapping[str, int] | None:
    technique = make(HawqV3, probes=8, **parameters)
    torch.manual_seed(0)
    specs = {f"{name}.weight": QuantSpec(8) for name in "024"}
    technique.qplug_calibrate(model=model, images=[torch.ones(2, 8), torch.zeros(2, 8)], specs=specs)
    return technique.qplug_allocate_bits(table=table)


def test_weight_and_input_of_a_layer_share_their_bits_and_matmuls_keep_the_recipes(traces):
    bits = choose(*small(), size_mb="60%")
    assert set(bits) == {f"{name}.{role}" for name in "024" for role in ("weight", "input")}
    assert all(bits[f"{name}.weight"] == bits[f"{name}.input"] for name in "024")
    assert set(bits.values()) == {4, 8}


def test_an_input_that_an_override_fixes_keeps_its_bits():
    bits = choose(*small(fixed_input="2.input"), size_mb="0%")
    assert "2.input" not in bits
    assert set(bits.values()) == {4}


def test_an_error_costs_its_square_times_the_mean_trace_and_nothing_where_that_is_negative(traces):
    model, table = small()
    first, second, third = table.weights
    power = float(model[0].weight.detach().double().square().sum())
    assert perturbation(table, first, 4) == pytest.approx(power * 10**-2.3)
    for favourite, other in ((second, third), (third, second)):  # what both take at 8 bits is more than there is
        traces |= {first.name: -1e9, favourite.name: 1e6 * favourite.numel, other.name: 1.0 * other.numel}
        bits = choose(model, table, size_mb=(128 * 4 + 64 * 8 + 12 * 4) / 8)
        assert (bits[first.name], bits[favourite.name], bits[other.name]) == (4, 8, 4)


def test_without_a_layer_there_is_nothing_to_choose():
    model, table = small()
    none = SqnrTable([s for s in table.sites if s.role == "lhs"], table.specs, table.sqnr_db, table.stats, table.costs)
    assert choose(model, none, size_mb="50%") is None


# latency tables

ROW = {"4": 1.0, "8": 2.0}


def test_a_table_comes_from_json_from_yaml_or_from_the_recipe_and_the_recipe_holds_it(tmp_path):
    table = {"0": ROW, "2": {"4": 0.5, "8": 0.75}}
    (tmp_path / "t.json").write_text(json.dumps(table))
    (tmp_path / "t.yaml").write_text("'0': {4: 1.0, 8: 2.0}\n'2': {4: 0.5, 8: 0.75}\n")
    wanted = {"0": {4: 1.0, 8: 2.0}, "2": {4: 0.5, 8: 0.75}}
    for given_ in (str(tmp_path / "t.json"), str(tmp_path / "t.yaml"), table):
        config = HawqV3.Config(latency_ms="50%", latencies=given_)
        assert config.latencies == wanted
        assert HawqV3.Config.model_validate_json(config.model_dump_json()) == config


def test_a_pipe_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "t.yaml")
    with pytest.raises(ValidationError, match="is no plain file"):
        HawqV3.Config(latency_ms="50%", latencies=str(tmp_path / "t.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "t.yaml: the file cannot be read: No such file or directory"),
        ("a: [", "t.yaml: this is neither JSON nor YAML: "),
        ("[1, 2]", "t.yaml: expected layer → bits → milliseconds, input should be a valid dictionary, received"),
        (
            "a: {8: fast}",
            "input should be a valid number, unable to parse string as a number, received 'fast' at a → 8",
        ),
        ("a: {8: -1}", "input should be greater than 0, received '-1' at a → 8"),
        ("a: {1: 1.0}", "input should be greater than or equal to 2, received '1' at a → 1"),
        ("a: {8: 1.0}\na: {8: 2.0}", "duplicate key"),
    ],
)
def test_a_table_that_is_none_is_refused_with_file_and_place(text, message, tmp_path):
    path = tmp_path / "t.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValidationError) as caught:
        HawqV3.Config(latency_ms=1.0, latencies=str(path))
    assert message in str(caught.value)


def test_latency_is_kept_layers_at_their_fixed_bits_included(traces):
    model, table = small()
    rows = {"0": ROW, "2": ROW, "4": ROW, "1": {"32": 0.5}}
    bits = choose(model, table, latency_ms=4.6, latencies=rows)
    assert [bits[f"{name}.weight"] for name in "024"].count(8) == 1
    assert set(choose(model, table, latency_ms="100%", latencies=rows).values()) == {8}
    with pytest.raises(InputError, match=r"need at least 3\.5, and the limit is 3"):
        choose(model, table, latency_ms=3.0, latencies=rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"0": ROW, "2": ROW}, "1 of 3 layers have no latency: 4"),
        ({"0": ROW, "2": ROW, "4": ROW, "head": ROW}, "the model has no layer 'head'"),
        ({"0": ROW, "2": ROW, "4": {"8": 1.0}}, "expected the latency of '4' at 4 bits, received it at 8"),
        (
            {"0": ROW, "2": ROW, "4": ROW, "1": ROW},
            r"expected the latency of '1' at 32 bits \(float\), received it at 4, 8",
        ),
    ],
)
def test_a_table_that_does_not_fit_the_model_is_refused(rows, message):
    with pytest.raises(InputError, match=message) as caught:
        choose(*small(), latency_ms="50%", latencies=rows)
    assert caught.value.where == "hawq.hawq_v3, latencies"
    assert caught.value.fix


# the recipe


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "expected a limit, one of size_mb, bops_g, latency_ms, received none"),
        ({"latency_ms": 1.0}, "need each other; give both"),
        ({"size_mb": 1.0, "latencies": {"0": ROW}}, "need each other; give both"),
        ({"size_mb": 1.0, "candidates": [4, 4]}, "expected two different candidates or more"),
        ({"size_mb": 1.0, "candidates": [1, 4]}, "greater than or equal to 2"),
        ({"size_mb": 0.0}, "greater than 0"),
        ({"size_mb": "120%"}, "should match pattern"),
        ({"size_mb": 1.0, "accounting": "paper"}, "'full', 'q-mlp' or 'hawq'"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        HawqV3.Config(**wrong)


@pytest.mark.slow
@pytest.mark.parametrize("accounting", ["full", "q-mlp", "hawq"])
@pytest.mark.parametrize("limit", ["size_mb", "bops_g"])
def test_a_run_keeps_the_limit_as_its_own_metrics_count_it(accounting, limit):
    key = limit if accounting == "full" else f"accounting.{accounting}.{limit}"
    few, many = (
        toy_run(HawqV3, probes=1, accounting=accounting, **{limit: share}).metrics[key] for share in ("0%", "100%")
    )
    target = (few + many) / 2
    run = toy_run(HawqV3, probes=1, accounting=accounting, **{limit: target})
    assert few < run.metrics[key] <= target * (1 + 1e-9)
    layers = [d for d in run.plan if d.site.role == "weight"]
    assert {d.quantizer.bits for d in layers} == {4, 8}
    assert {d.bits_by for d in layers} == {"hawq.hawq_v3"}
    assert all(d.quantizer.bits == 4 for d in run.plan if d.site.role in ("lhs", "rhs"))  # the toy recipe's


def test_a_run_within_an_impossible_limit_ends_with_an_input_error():
    with pytest.raises(InputError, match=r"need at least 0\.00\d+, and the limit is 1e-05"):
        toy_run(HawqV3, probes=1, size_mb=1e-5)


@pytest.mark.slow
def test_on_digits_it_loses_less_than_the_same_bits_at_the_other_layers_of_each_kind():
    """2 or 8 bits for weights, activations at 8; then each kind's bits one block further on, which is as large."""
    recipe = RECIPES / "hawq.yaml"
    values = YAML(typ="safe").load(recipe)
    values["quantize"]["overrides"].append({"match": "*.input", "bits": 8})
    values["techniques"][0] |= {"candidates": [2, 8], "probes": 8}
    ours = qplug.run(recipe_type(installed()).model_validate(values))
    chosen = {d.site.module: d.quantizer.bits for d in ours.plan if d.bits_by == "hawq.hawq_v3"}
    kinds = {name.partition("blocks.")[2][2:] for name in chosen}
    turned = {}
    for kind in kinds:
        row = [f"blocks.{i}.{kind}" for i in range(4)]
        turned |= {name: chosen[row[(i + 1) % 4]] for i, name in enumerate(row)}
    assert turned != chosen
    values["techniques"] = values["techniques"][1:]
    values["quantize"]["overrides"] += [{"match": f"{name}.weight", "bits": bits} for name, bits in turned.items()]
    theirs = qplug.run(recipe_type(installed()).model_validate(values))
    key = "accounting.hawq.size_mb"
    assert ours.metrics[key] == pytest.approx(theirs.metrics[key], rel=1e-12)
    for measure in ("quantized.agreement", "quantized.logit_sqnr_db"):  # measured: 92.0 and 86.1 %, 8.3 and 5.6 dB
        assert ours.metrics[measure] > theirs.metrics[measure]
