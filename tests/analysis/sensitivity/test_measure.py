"""The measurement on toys: every number by its definition, the selection of sites, and errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from numeric_toys import calibrated, sited
from pydantic import ValidationError, create_model
from torch import nn

from qplug import Config, InputError, ModelSource
from qplug.analysis.sensitivity.measure import SensitivityRequest, measure
from qplug.data.loading import batches
from qplug.data.stream import Stream
from qplug.models.float_model import FloatModel, Preprocessing
from qplug.quantization.calibration.hessian import hessian_traces
from qplug.recipe.schema import Scope
from qplug.testing import toy_images, toy_registry, toy_vit
from qplug.testing.toys import SIZE

PREPROCESSING = Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3, "nearest", 1.0)


def strange_head() -> nn.Module:
    """The toy with a head that brevitas cannot hold."""
    model = toy_vit()
    model.head.__class__ = type(
        "StrangeLinear", (nn.Linear,), {"forward": lambda self, x: 2 * nn.Linear.forward(self, x)}
    )
    return model


class Strange(ModelSource):
    Config = create_model("Config", __base__=Config, source=(Literal["strange"], "strange"))

    def load(self) -> FloatModel:
        return FloatModel.of(strange_head(), "strange", PREPROCESSING, "the head is strange")


def data(registry, split, images):
    source = registry.datasets["toy"]
    return source(source.Config(split=split, images=images))


def measured(request=None, *, model=None, ranges=("baseline.hessian",), evaluation=7, **more):
    registry = toy_registry()
    source = (model or registry.models["toy"])(None)
    techniques = [registry.techniques[name](registry.techniques[name].Config(use=name)) for name in ranges]
    return measure(
        source,
        data(registry, "train", 6),
        data(registry, "test", evaluation),
        techniques,
        request or SensitivityRequest(),
        registry=registry,
        **more,
    )


@pytest.fixture(scope="module")
def found():
    return measured(SensitivityRequest(bits=(6, 3), hessian_probes=4, batch_size=3))


@pytest.mark.slow
def test_every_site_in_scope_has_every_measure(found):
    _, site_map = sited(toy_vit(), toy_images(1))
    wanted = [s for s in site_map.sites if s.kind.value not in ("softmax_input", "layernorm_input")]
    assert [one.site for one in found.sites] == wanted
    assert {one.decision.quantizer.bits for one in found.sites} == {3}
    assert found.images == {"calibration": 6, "evaluation": 7}
    assert {one.effect.images for one in found.sites} == {7}
    assert found.warnings == []
    assert set(found.seconds) == {
        "load",
        "rewrite",
        "sites",
        "statistics",
        "ranges",
        "sqnr",
        "drop",
        "hessian",
        "total",
    }
    for one in found.sites:
        cheap = ["sqnr_db.6", "sqnr_db.3"]
        if one.site.kind.is_weight:
            cheap += ["hessian.trace", "hessian.per_parameter", "hessian.hawq"]
        assert list(one.values()) == [*cheap, "drop", "logit_sqnr_db"]
        assert one.sqnr_db[6] > one.sqnr_db[3]


def test_sqnr_and_perturbation_are_those_of_the_weight_in_float64(found):
    model = toy_vit()
    for one in found.sites:
        if one.site.kind.is_weight:
            weight = model.get_parameter(one.site.name)
            noise = float((one.decision.quantizer.infer(weight).double() - weight.double()).square().sum())
            signal = float(weight.double().square().sum())
            assert one.perturbation == pytest.approx(noise, rel=1e-5)
            assert one.sqnr_db[3] == pytest.approx(10 * torch.tensor(signal / noise).log10().item(), abs=1e-4)
            assert one.values()["hessian.hawq"] == pytest.approx(one.trace.value / weight.numel() * noise, rel=1e-5)


def test_the_traces_are_those_of_the_calibration_images(found):
    model, _ = sited(toy_vit(), toy_images(1))
    images = data(toy_registry(), "train", 6).open(0)
    shown, _ = next(batches(images, PREPROCESSING.transform(), 6))
    names = [one.site.name for one in found.sites if one.site.kind.is_weight]
    expected = hessian_traces(model, names, [shown], probes=4)
    for one in found.sites:
        if one.trace:
            assert one.trace == expected[one.site.name]


def test_a_weights_effect_is_that_of_the_weight_in_the_model(found):
    images = data(toy_registry(), "test", 7).open(0)
    shown, _ = next(batches(images, PREPROCESSING.transform(), 7))
    model = toy_vit()
    one = next(one for one in found.sites if one.site.name == "blocks.0.mlp.fc1.weight")
    with torch.no_grad():
        before = model(shown)
        model.blocks[0].mlp.fc1.weight.copy_(one.decision.quantizer.infer(model.blocks[0].mlp.fc1.weight))
        after = model(shown)
    assert one.effect.drop == pytest.approx(float((before.argmax(1) != after.argmax(1)).double().mean()))
    expected = 10 * torch.log10(before.double().square().sum() / (after - before).double().square().sum())
    assert one.effect.logit_sqnr_db == pytest.approx(float(expected), abs=1e-3)


def test_correlations_are_taken_apart_for_weights_and_activations(found):
    weights = sum(one.site.kind.is_weight for one in found.sites)
    assert {c.n for c in found.correlations["weights"]} == {weights}
    assert {c.n for c in found.correlations["activations"]} == {len(found.sites) - weights}
    assert len(found.correlations["weights"]) == 7 * 6 / 2
    assert len(found.correlations["activations"]) == 4 * 3 / 2
    assert not any(c.one.startswith("hessian") for c in found.correlations["activations"])


@pytest.mark.slow
def test_the_same_request_gives_the_same_answer_whatever_the_batches(found):
    again = measured(SensitivityRequest(bits=(6, 3), hessian_probes=4, batch_size=64))
    for one, other in zip(found.sites, again.sites, strict=True):
        assert other.values() == pytest.approx(one.values(), rel=1e-4)


@pytest.mark.slow
def test_scope_and_patterns_choose_sites():
    def names(**values):
        request = SensitivityRequest(bits=(4,), **values)
        return {one.site.name for one in measured(request, ranges=("toy.minmax",)).sites}

    everything = names()
    assert names(match=("*.fc1",)) == {f"blocks.{b}.mlp.fc1.{role}" for b in (0, 1) for role in ("weight", "input")}
    assert names(match=("query", "head.weight")) == {
        "blocks.0.attn.matmul_qk.lhs",
        "blocks.1.attn.matmul_qk.lhs",
        "head.weight",
    }
    more = names(scope=Scope(softmax=True)) - everything
    assert more == {"blocks.0.attn.softmax.input", "blocks.1.attn.softmax.input"}
    assert names(scope=Scope(layernorm=True), match=("layernorm_input",)) == {
        *(f"blocks.{b}.norm{n}.input" for b in (0, 1) for n in (1, 2)),
        "norm.input",
    }


@pytest.mark.parametrize(
    ("pattern", "message", "fix"),
    [
        ("*.nothing", "'*.nothing' matches no site of this model", "qplug inspect MODEL"),
        ("softmax_input", "matches only inputs of Softmax and LayerNorm", "--softmax or --layernorm"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(pattern, message, fix):
    with pytest.raises(InputError) as caught:
        measured(SensitivityRequest(match=("head.weight", pattern)))
    assert message in caught.value.what
    assert fix in caught.value.fix


def test_sites_without_a_technique_are_refused_and_idle_techniques_named():
    with pytest.raises(InputError, match="no technique of the recipe estimates the range"):
        measured(ranges=("tsptq_vit.v_2sf",))
    request = SensitivityRequest(bits=(4,), match=("head.weight",))
    assert measured(request, ranges=("tsptq_vit.v_2sf", "toy.minmax")).warnings == [
        "tsptq_vit.v_2sf had nothing to do: no site, norm or module was left for it"
    ]


def test_sites_that_the_backend_cannot_execute_are_named_and_the_others_measured():
    found = measured(SensitivityRequest(bits=(4,)), model=Strange, ranges=("toy.minmax",))
    assert not any(one.site.module == "head" for one in found.sites)
    assert len(found.sites) > 20
    assert found.warnings[0] == "the head is strange"
    assert sorted(
        w.partition(" was not measured: brevitas cannot hold a StrangeLinear")[0] for w in found.warnings[1:]
    ) == ["head.input", "head.weight"]


def test_the_drop_has_the_smallest_width_unless_it_has_its_own():
    assert SensitivityRequest().drop_at == 4
    assert SensitivityRequest(bits=(8,), drop_bits=3).drop_at == 3
    one = measured(SensitivityRequest(bits=(8,), drop_bits=3, match=("head.weight",))).sites[0]
    assert one.decision.quantizer.bits == 3
    assert list(one.sqnr_db) == [8]


@pytest.mark.parametrize("values", [{"bits": ()}, {"bits": (1,)}, {"bits": (17,)}, {"drop_bits": 1}, {"match": ("",)}])
def test_requests_that_cannot_be(values):
    with pytest.raises(ValidationError):
        SensitivityRequest(**values)


def test_images_in_both_sets_are_refused():
    registry = toy_registry()
    same = data(registry, "train", 3)
    toy = registry.models["toy"](None)
    with pytest.raises(InputError, match="share 3 examples"):
        measure(toy, same, same, [registry.techniques["toy.minmax"](None)], SensitivityRequest(), registry=registry)


def test_images_are_decoded_once_if_they_fit_and_anew_at_each_pass_otherwise(monkeypatch):
    images = data(toy_registry(), "train", 5).open(0)
    decoded = []
    original = type(images).__getitem__
    monkeypatch.setattr(type(images), "__getitem__", lambda self, i: (decoded.append(i), original(self, i))[1])
    kept = Stream(images, PREPROCESSING, 2)
    assert len(kept) == 3
    first, second = list(kept), list(kept)
    assert decoded == [0, 1, 2, 3, 4]
    assert [len(batch) for batch in first] == [2, 2, 1]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    monkeypatch.setattr("qplug.data.stream.LARGEST_IN_MEMORY", 5 * 3 * 16 * 16 * 4 - 1)
    streamed = Stream(images, PREPROCESSING, 2)
    assert decoded == [0, 1, 2, 3, 4]
    assert all(torch.equal(a, b) for a, b in zip([*streamed, *streamed], first + second, strict=True))
    assert decoded == 3 * [0, 1, 2, 3, 4]


def test_the_statistics_are_those_of_a_run():
    """The quantizer that a site gets here is the one that the pipeline's own parts give it."""
    images = data(toy_registry(), "train", 6).open(0)
    shown, _ = next(batches(images, PREPROCESSING.transform(), 6))
    _, site_map, calibration = calibrated(images=shown)
    found = measured(SensitivityRequest(bits=(4,)), ranges=("toy.minmax",))
    for one in found.sites:
        site = next(site for site in site_map.sites if site == replace(one.site))
        low, high = calibration.stats(site).range(one.decision.spec.granularity)
        scale = torch.maximum(low.abs(), high.abs()) / (7 if bool((low < 0).any()) else 15)
        assert torch.allclose(one.decision.quantizer.scale, scale, rtol=1e-5)
