"""From what the recipe asks to one quantizer a site: overrides, ranges, bits."""

from typing import Literal

import pytest
import torch
from numeric_toys import calibrated, quantize, steps

import qplug
from qplug import (
    BackendOffer,
    Granularity,
    InputError,
    PluginError,
    QuantizerChoice,
    QuantSpec,
    SiteKind,
    UniformQuantizer,
)
from qplug.pipeline.assigner import QuantizerAssigner
from qplug.pipeline.clock import Clock
from qplug.pipeline.result_cache import ResultCache
from qplug.pipeline.specs import resolve
from qplug.pipeline.stages.allocate import allocate_bits
from qplug.quantization.accounting import CONVENTIONS
from qplug.quantization.costs import account
from qplug.quantization.plan import Plan

T, C, H = Granularity.PER_TENSOR, Granularity.PER_CHANNEL, Granularity.PER_HEAD


class MinMax(qplug.Technique):
    class Config(qplug.Config):
        use: Literal["toy.minmax"] = "toy.minmax"

    @qplug.hookimpl(trylast=True)
    def qplug_make_quantizer(self, site, spec, stats):
        return QuantizerChoice(UniformQuantizer.from_range(*stats.range(spec.granularity), spec), "min-max")


class Values(MinMax):
    """Takes the right operands of attention alone."""

    class Config(qplug.Config):
        use: Literal["toy.values"] = "toy.values"

    @qplug.hookimpl
    def qplug_make_quantizer(self, site, spec, stats):
        return (
            QuantizerChoice(UniformQuantizer(torch.tensor(0.5), None, spec.bits, True), "half")
            if site.role == "rhs"
            else None
        )


def allocating(bits):
    class Bits(qplug.Technique):
        class Config(qplug.Config):
            use: Literal["toy.bits"] = "toy.bits"

        @qplug.hookimpl
        def qplug_allocate_bits(self, table):
            return bits(table) if callable(bits) else bits

    return Bits


@pytest.fixture(scope="module")
def known():
    return calibrated()


def fitted(known, section, *techniques, offer=BackendOffer("toy:Backend")):  # noqa: B008  frozen
    """Every decision, by site, what is skipped, and the table."""
    model, found, calibration = known
    made = steps(*techniques)
    specs = resolve(section, found.sites)
    assigner = QuantizerAssigner(made, calibration, specs, found.sites, ResultCache(None, Clock(made), {}))
    bits = allocate_bits(made, assigner, model, found, offer)
    seen = []
    decisions = assigner.decide(bits.by, bits.bits, seen.append)
    assert seen == list(range(1, len(decisions) + 1))
    return decisions, specs.skipped, bits.table


def test_weights_and_activations_get_their_own_specification(known):
    section = quantize(activations=6)
    specs = resolve(section, known[1].sites)
    assert specs.skipped == {}
    assert specs.fixed == set()
    assert specs["head.weight"] == QuantSpec(4, C)
    assert specs["head.input"] == QuantSpec(6, T)
    assert set(specs) == {site.name for site in known[1].sites}


def test_overrides_match_names_modules_and_kinds_and_the_first_wins(known):
    section = quantize(
        overrides=[
            {"match": "blocks.0.attn.qkv.weight", "bits": 8},
            {"match": "blocks.0.*", "bits": 6, "symmetric": False},
            {"match": "value", "granularity": "per_head"},
            {"match": "blocks.*.qkv", "bits": 3},
        ]
    )
    specs = resolve(section, known[1].sites)
    assert specs["blocks.0.attn.qkv.weight"] == QuantSpec(8, C)
    assert specs["blocks.0.attn.qkv.input"] == QuantSpec(6, T, False)
    assert specs["blocks.0.attn.matmul_av.rhs"] == QuantSpec(6, T, False)
    assert specs["blocks.1.attn.matmul_av.rhs"] == QuantSpec(4, H)
    assert specs["blocks.1.attn.qkv.weight"] == QuantSpec(3, C)
    assert specs["head.weight"] == QuantSpec(4, C)
    assert "blocks.1.attn.matmul_av.rhs" not in specs.fixed
    assert {"blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.input"} <= specs.fixed


def test_a_float_zero_point_is_that_of_asymmetric_sites_alone(known):
    section = quantize(overrides=[{"match": "head", "symmetric": True}])
    activations = section.activations.model_copy(update={"symmetric": False, "zero_point": "float"})
    specs = resolve(section.model_copy(update={"activations": activations}), known[1].sites)
    assert specs["head.input"] == QuantSpec(4, T)
    assert specs["blocks.0.attn.qkv.input"] == QuantSpec(4, T, False, "float")


def test_an_override_that_matches_nothing_is_refused_even_behind_one_that_does(known):
    for overrides in (
        [{"match": "head", "bits": 8}, {"match": "heads", "bits": 8}],
        [{"match": "Head*", "skip": True}],
    ):
        with pytest.raises(InputError, match="matches no site of this model") as caught:
            resolve(quantize(overrides=overrides), known[1].sites)
        assert caught.value.where == "quantize.overrides"


def test_an_override_that_another_shadows_is_not_called_unmatched(known):
    resolve(quantize(overrides=[{"match": "head.*", "bits": 8}, {"match": "head.weight", "bits": 3}]), known[1].sites)


def test_heads_of_a_tensor_without_heads_are_refused_unless_skipped(known):
    with pytest.raises(InputError, match="per_head asked of a tensor without heads") as caught:
        resolve(quantize(overrides=[{"match": "head.input", "granularity": "per_head"}]), known[1].sites)
    assert caught.value.where == "head.input"
    sites = [site for site in known[1].sites if site.name == "head.input"]
    section = quantize(activations=4, overrides=[{"match": "head", "skip": True}])
    section = section.model_copy(update={"activations": section.activations.model_copy(update={"granularity": H})})
    assert resolve(section, sites).skipped == {"head.input": "override 'head'"}


def test_decisions_say_who_and_why(known):
    decisions, _, table = fitted(known, quantize(overrides=[{"match": "head", "bits": 8}]), Values, MinMax)
    assert table is None
    value = decisions["blocks.0.attn.matmul_av.rhs"]
    assert (value.technique, value.reason, value.bits_by) == ("toy.values", "half", "recipe")
    head = decisions["head.weight"]
    assert (head.technique, head.reason, head.bits_by) == ("toy.minmax", "min-max", "recipe, override")
    assert (head.spec, head.quantizer.bits) == (QuantSpec(8, C), 8)
    assert list(decisions) == [site.name for site in known[1].sites]


def test_a_skipped_site_has_no_decision_and_says_why(known):
    decisions, skipped, _ = fitted(known, quantize(overrides=[{"match": "head*", "skip": True}]), MinMax)
    assert skipped == dict.fromkeys(("head.weight", "head.input"), "override 'head*'")
    assert not {"head.weight", "head.input"} & set(decisions)


def test_a_site_that_no_technique_takes_is_an_error(known):
    with pytest.raises(InputError, match=r"estimates the range of .*\(conv_weight, per_channel, 4 bits\)"):
        fitted(known, quantize(), Values)


def test_each_site_and_width_is_fitted_once(known):
    asked = []

    class Counting(MinMax):
        @qplug.hookimpl
        def qplug_make_quantizer(self, site, spec, stats):
            asked.append((site.name, spec.bits))
            return MinMax.qplug_make_quantizer(self, site, spec, stats)

    def bits(table):
        for _ in range(3):
            for site in table.sites:
                table.sqnr_db(site, 5)
        return {site.name: 5 for site in table.sites[:4]}

    decisions, _, table = fitted(known, quantize(), allocating(bits), Counting)
    assert len(asked) == len(set(asked))
    assert {name for name, width in asked if width == 5} == {site.name for site in known[1].sites}
    assert {width for _, width in asked} == {4, 5}
    assert set(table.measured()) == set(decisions)


def test_the_table_holds_the_sqnr_of_the_recipes_own_ranges(known):
    measured = {}

    def bits(table):
        measured.update({(site.name, b): table.sqnr_db(site, b) for site in table.sites for b in (3, 6)})
        return {}

    _, _, table = fitted(known, quantize(), allocating(bits), MinMax)
    stats = known[2].stats(next(s for s in known[1].sites if s.name == "blocks.0.mlp.fc2.input"))
    x = stats.sample.double()
    for b in (3, 6):
        noise = UniformQuantizer.from_range(stats.min, stats.max, QuantSpec(b))(stats.sample).double() - x
        expected = float(10 * (x.square().sum() / noise.square().sum()).log10())
        assert measured["blocks.0.mlp.fc2.input", b] == pytest.approx(expected, rel=1e-6)
    assert all(measured[name, 6] > measured[name, 3] for name, _ in measured)
    assert table.measured()["head.weight"] == {3: measured["head.weight", 3], 6: measured["head.weight", 6]}


def test_allocated_bits_are_followed_and_fixed_or_skipped_sites_are_not_in_the_table(known):
    listed = []

    def bits(table):
        listed.extend(site.name for site in table.sites)
        assert set(table.specs) == set(listed)
        return {"blocks.0.mlp.fc1.weight": 7, "blocks.0.mlp.fc2.input": 4}

    section = quantize(
        overrides=[
            {"match": "head.weight", "bits": 8},
            {"match": "head.input", "skip": True},
            {"match": "blocks.1.mlp.fc1.*", "symmetric": False},
        ]
    )
    decisions, _, _ = fitted(known, section, allocating(bits), MinMax)
    assert not {"head.weight", "head.input"} & set(listed)
    assert "blocks.1.mlp.fc1.input" in listed
    fc1 = decisions["blocks.0.mlp.fc1.weight"]
    assert (fc1.spec.bits, fc1.quantizer.bits, fc1.bits_by) == (7, 7, "toy.bits")
    assert decisions["blocks.0.mlp.fc2.input"].bits_by == "toy.bits"
    assert decisions["blocks.1.mlp.fc1.input"].bits_by == "recipe"
    assert decisions["head.weight"].bits_by == "recipe, override"


@pytest.mark.parametrize(
    "bits", [{"nowhere.weight": 4}, {"head.weight": 1}, {"head.weight": 17}, {"head.weight": 4.0}, {"head.input": 4}]
)
def test_bits_that_cannot_be_are_refused_with_the_technique(known, bits):
    with pytest.raises(PluginError, match="expected sites of the table") as caught:
        fitted(known, quantize(overrides=[{"match": "head.input", "skip": True}]), allocating(bits), MinMax)
    assert caught.value.where == "toy.bits of qplug-toy 1.2.3, qplug_allocate_bits"


def test_bits_that_the_backend_does_not_have_are_refused_with_the_technique(known):
    few = BackendOffer("toy:Backend", bits=(4, 8))
    message = r"backend, 4 to 8, received others for 1 sites, for example head\.weight: 2"
    with pytest.raises(InputError, match=message) as caught:
        fitted(known, quantize(), allocating({"head.weight": 2, "head.input": 8}), MinMax, offer=few)
    assert caught.value.where == "toy.bits of qplug-toy 1.2.3, qplug_allocate_bits"
    assert "change the backend" in caught.value.fix


def test_an_allocator_may_leave_the_recipes_bits(known):
    decisions, _, table = fitted(known, quantize(), allocating(None), MinMax)
    assert {d.bits_by for d in decisions.values()} == {"recipe"}
    assert table.measured() == {}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda spec: "4 bits", "expected a QuantizerChoice with a Quantizer, got str"),
        (lambda spec: QuantizerChoice(torch.tensor(1.0)), "expected a QuantizerChoice"),
        (
            lambda spec: QuantizerChoice(UniformQuantizer(torch.tensor(1.0), None, 5, True)),
            "asked for 4 bits, got a quantizer of 5",
        ),
        (
            lambda spec: QuantizerChoice(UniformQuantizer(torch.tensor(float("nan")), None, 4, True)),
            "scale is not finite",
        ),
    ],
)
def test_an_answer_that_cannot_be_used_is_refused_with_its_place(known, answer, message):
    class Wrong(MinMax):
        @qplug.hookimpl
        def qplug_make_quantizer(self, site, spec, stats):
            return answer(spec)

    with pytest.raises(PluginError, match=message) as caught:
        fitted(known, quantize(), Wrong)
    first = known[1].sites[0].name
    assert caught.value.where == f"toy.minmax of qplug-toy 1.2.3, qplug_make_quantizer at {first}"


def test_post_softmax_is_unsigned_and_heads_are_fitted_alone(known):
    section = quantize(overrides=[{"match": "post_softmax", "granularity": "per_head"}])
    decisions, _, _ = fitted(known, section, MinMax)
    for decision in decisions.values():
        if decision.site.kind is SiteKind.POST_SOFTMAX:
            assert not decision.quantizer.signed
            assert decision.quantizer.scale.shape == (2, 1, 1)


class Alternating(MinMax):
    """Its quantizers differ at every call, unless they ``settle``."""

    class Config(qplug.Config):
        use: Literal["toy.alternating"] = "toy.alternating"

    asked: list[tuple[str, bool]]
    settle = False

    @qplug.hookimpl
    def qplug_alternation_rounds(self, operands):
        return 2 if operands[0].module == "head" else None

    @qplug.hookimpl
    def qplug_make_quantizer(self, site, spec, stats):
        self.asked.append((site.name, stats.product is not None and stats.product.offset is not None))
        quantizer = UniformQuantizer.from_range(*stats.range(spec.granularity), spec)
        return QuantizerChoice(quantizer if self.settle else quantizer.scaled(1.0 / len(self.asked)))


def test_operands_alternate_where_a_technique_asks_for_it(known):
    Alternating.asked = asked = []
    decisions, _, _ = fitted(known, quantize(), Alternating)
    start, weight, value = ("head.input", False), ("head.weight", True), ("head.input", True)
    assert [call for call in asked if call[0].startswith("head.")] == [start, *[weight, value] * 2]
    assert len(asked) == len(decisions) + 3  # every other site once


def test_alternating_ends_where_nothing_changes(known):
    class Settled(Alternating):
        settle = True

    Settled.asked = asked = []
    fitted(known, quantize(), Settled)
    at_head = [("head.input", False), ("head.weight", True), ("head.input", True)]
    assert [call for call in asked if call[0].startswith("head.")] == at_head


def test_operands_alternate_at_the_bits_that_were_allocated(known):
    Alternating.asked = []
    decisions, _, _ = fitted(known, quantize(), Alternating, allocating({"head.weight": 8, "head.input": 3}))
    assert [decisions[f"head.{role}"].quantizer.bits for role in ("weight", "input")] == [8, 3]


@pytest.mark.parametrize("accounting", ["full", "q-mlp", "hawq"])
def test_the_table_counts_costs_as_the_run_does_at_the_bits_asked(known, accounting):
    model, found, _ = known
    asked, counted = {"head.weight": 8, "blocks.0.mlp.fc1.input": 3}, {}

    def bits(table):
        counted.update(table.costs(asked, accounting))
        return asked

    section = quantize(overrides=[{"match": "blocks.1.attn.qkv", "skip": True}, {"match": "patch_embed*", "bits": 8}])
    decisions, _, _ = fitted(known, section, allocating(bits), MinMax)
    plan = Plan(decisions, float_macs=found.float_macs(decisions), total_macs=found.total_macs)
    account_ = account(model, plan)
    assert counted == {metric: account_[CONVENTIONS[accounting].key(metric)] for metric in counted}
    assert set(counted) == {"size_mb", "bops_g", "float.size_mb", "float.bops_g"}


def test_a_convention_that_does_not_exist_is_refused(known):
    with pytest.raises(InputError, match="no convention is called 'hawk'"):
        fitted(known, quantize(), allocating(lambda table: table.costs({}, "hawk")), MinMax)
