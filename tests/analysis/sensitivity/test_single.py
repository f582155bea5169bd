"""One site at a time: the same as a plan with one decision, without a copy of the model."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from numeric_toys import calibrated, quantize, steps
from torch import nn

from qplug import InputError
from qplug.analysis.sensitivity.single import Effect, one_at_a_time, quantized, refusal
from qplug.core.task import CLASSIFICATION
from qplug.hooks.registry import installed
from qplug.pipeline.assigner import QuantizerAssigner
from qplug.pipeline.clock import Clock
from qplug.pipeline.result_cache import ResultCache
from qplug.pipeline.specs import RECIPE, resolve
from qplug.quantization.backends.brevitas import BrevitasBackend
from qplug.quantization.plan import Plan
from qplug.testing import toy_images

BACKEND = BrevitasBackend()
IMAGES = toy_images(7, seed=3)


@pytest.fixture(scope="module")
def known():
    """The explicit toy ViT and a decision at 3 bits for each of its sites, inputs of Softmax and norms included."""
    model, found, calibration = calibrated(loss="kl")
    techniques = installed().techniques
    made = steps(*(techniques[name] for name in ("mptq_vit.opt_m", "tsptq_vit.v_2sf", "baseline.hessian")))
    return model, decide(made, calibration, found.sites, 3)


def decide(made, calibration, sites, bits):
    recall = ResultCache(None, Clock(made), {})
    assigner = QuantizerAssigner(made, calibration, resolve(quantize(bits, bits), sites), sites, recall)
    return list(assigner.decide(RECIPE, {}, lambda _: None).values())


def logits(model, decision, images=IMAGES):
    """Float and quantized logits by a copy of the model and a plan of one decision."""
    whole = BACKEND.apply(copy.deepcopy(model), Plan({decision.site.name: decision}))
    with torch.no_grad(), BACKEND.inference(whole):
        return model(images), whole(images)


@pytest.mark.slow
def test_each_effect_equals_that_of_a_plan_of_one_decision(known):
    model, decisions = known
    assert {d.quantizer.kind for d in decisions} == {"uniform", "regions"}
    assert {d.site.role for d in decisions} == {"weight", "input", "lhs", "rhs"}
    assert {"softmax_input", "layernorm_input"} < {d.site.kind.value for d in decisions}
    found = one_at_a_time(model, BACKEND, decisions, [IMAGES])
    assert list(found) == [d.site.name for d in decisions]
    for decision in decisions:
        expected = Effect()
        expected.add(*logits(model, decision))
        assert found[decision.site.name] == expected
        assert expected.noise > 0


def test_the_model_is_put_back(known):
    model, decisions = known
    modules, before = dict(model.named_modules()), model(IMAGES)
    one_at_a_time(model, BACKEND, decisions, IMAGES.split(3))
    assert dict(model.named_modules()) == modules
    assert torch.equal(model(IMAGES), before)
    with quantized(model, BACKEND, decisions[5]):
        assert dict(model.named_modules()) != modules
    with pytest.raises(RuntimeError):
        one_at_a_time(model, BACKEND, decisions[5:6], [IMAGES[:, :1]])  # fails in the middle of a forward
    assert dict(model.named_modules()) == modules


@pytest.mark.slow
def test_agreement_and_sqnr_are_those_of_a_run_whatever_the_batches(known):
    model, decisions = known
    whole = one_at_a_time(model, BACKEND, decisions, [IMAGES])
    done = []
    parts = one_at_a_time(model, BACKEND, decisions, IMAGES.split(3), done.append)
    assert done == list(range(1, 3 * len(decisions) + 1))
    for decision in decisions:
        name = decision.site.name
        expected = CLASSIFICATION.metrics(*logits(model, decision), torch.zeros(len(IMAGES), dtype=torch.int64))
        for effect in (whole[name], parts[name]):
            assert effect.images == len(IMAGES)
            assert 1.0 - effect.drop == pytest.approx(expected["quantized.agreement"])
            assert effect.logit_sqnr_db == pytest.approx(expected["quantized.logit_sqnr_db"], abs=1e-4)


@pytest.mark.slow
def test_more_bits_are_less_noise(known):
    model, _ = known
    found = {}
    for bits in (3, 8):
        _, sites, calibration = calibrated(copy.deepcopy(model), loss="kl")
        decisions = decide(steps(installed().techniques["baseline.hessian"]), calibration, sites.sites, bits)
        found[bits] = one_at_a_time(model, BACKEND, decisions, [IMAGES])
    gains = [found[8][name].logit_sqnr_db - found[3][name].logit_sqnr_db for name in found[3]]
    assert min(gains) > 0  # measured: 3.6, median 28.9 dB


def test_effects():
    same = Effect()
    same.add(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]))
    assert (same.drop, same.logit_sqnr_db) == (0.0, math.inf)
    moved = Effect()
    moved.add(torch.tensor([[0.0, 10.0], [3.0, 4.0]]), torch.tensor([[0.0, 9.0], [4.0, 3.0]]))
    assert moved.drop == 0.5
    assert moved.logit_sqnr_db == pytest.approx(10 * math.log10(125 / 3))
    silent = Effect()
    silent.add(torch.zeros(1, 2), torch.ones(1, 2))
    assert silent.logit_sqnr_db == -math.inf
    broken = Effect()
    broken.add(torch.ones(1, 2), torch.full((1, 2), math.nan))
    assert math.isnan(broken.logit_sqnr_db)


def test_unsupported_sites_are_refused_with_a_reason(known):
    model, decisions = known
    strange = copy.deepcopy(model)
    strange.head.__class__ = type("StrangeLinear", (nn.Linear,), {})
    reasons = {d.site.name: refusal(strange, BACKEND, d) for d in decisions}
    assert {name for name, reason in reasons.items() if reason} == {"head.weight", "head.input"}
    assert "cannot hold a StrangeLinear" in str(reasons["head.weight"])
    with pytest.raises(InputError):
        one_at_a_time(strange, BACKEND, [d for d in decisions if d.site.module == "head"], [IMAGES])
