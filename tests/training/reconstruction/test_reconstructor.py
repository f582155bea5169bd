"""Reconstruction inside a run on toys: results, errors, and resumed runs."""

import copy
import json
import re
from typing import Literal

import pytest
import torch
from qplug_plugins.brecq import AdaRound, Brecq
from reconstruction_toys import QUICK, errors, reconstructed
from safetensors.torch import load_file

from qplug import (
    Config,
    LearnedStepSize,
    Learner,
    PluginError,
    Rate,
    Reconstruction,
    Technique,
    UniformQuantizer,
    hookimpl,
)
from qplug.analysis.compare.plans import plan_differences
from qplug.cli.report.run import decisions, summary_tables
from qplug.core.storage.cache import Cache
from qplug.hooks.registry import installed
from qplug.pipeline.run import run
from qplug.quantization.accounting import CONVENTIONS, DEFAULT
from qplug.quantization.plan import Plan
from qplug.testing.run import toy_recipe, toy_registry


@pytest.mark.slow
@pytest.mark.parametrize("technique", [Brecq, AdaRound])
def test_reconstruction_reduces_the_error_of_the_outputs(technique):
    plan = reconstructed(technique, iterations=150).plan
    found = errors(plan)
    assert ("blocks.1" in found) == (technique is Brecq)
    assert ("blocks.1.mlp.fc2" in found) == (technique is AdaRound)
    before, after = map(sum, zip(*found.values(), strict=True))
    assert after < 0.9 * before


@pytest.mark.slow
def test_adaround_keeps_activation_quantizers_and_brecq_learns_their_scales():
    plain, block = reconstructed(AdaRound).plan, reconstructed(Brecq, steps=False).plan
    learned = reconstructed(Brecq, step_rate=0.01).plan
    for site, decision in plain.decisions.items():
        same = decision.quantizer.to_dict() == learned.decisions[site].quantizer.to_dict()
        assert same == decision.site.kind.is_weight
        assert decision.quantizer.to_dict() == block.decisions[site].quantizer.to_dict()


@pytest.mark.slow
def test_the_run_folder_stores_the_learned_weights_and_quantizers(tmp_path):
    result = reconstructed(out=tmp_path / "run")
    from qplug import load_quantized

    registry = toy_registry(Brecq)
    model = load_quantized(tmp_path / "run", registry=registry)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert "brecq.brecq: error of blocks.0" in json.dumps(plan, ensure_ascii=False)
    assert any(name.endswith(".codes") for name in load_file(tmp_path / "run" / "model.safetensors"))
    assert sum(1 for _ in model.modules()) > 10
    assert result.metrics["seconds.reconstruction"] > 0


class Stop:
    """Ends the run after a number of blocks."""

    def __init__(self, blocks):
        self.blocks, self.seen = blocks, []

    @hookimpl
    def qplug_observe(self, event):
        if event.stage == "reconstruction" and event.phase == "advance":
            self.seen.append(event.done)
            if event.done == self.blocks:
                raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_an_interrupted_run_resumes_with_the_same_result(tmp_path, blocks):
    whole = reconstructed().plan.to_dict()
    cache = Cache(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        reconstructed(observers=[Stop(blocks)], cache=cache)
    cached = len(list((tmp_path / "cache" / "reconstruction").rglob("*.safetensors")))
    assert cached == blocks
    again = reconstructed(cache=cache)
    assert again.plan.to_dict() == whole
    assert again.metrics["cache.seconds_saved"] > 0
    more = len(list((tmp_path / "cache" / "reconstruction").rglob("*.safetensors")))
    assert more > cached
    other = reconstructed(cache=cache, weight=0.02).plan.to_dict()
    assert other != whole


@pytest.mark.slow
def test_the_capture_batch_size_does_not_change_the_result():
    """The batch size of the data has no influence on the learned values."""
    registry = toy_registry(Brecq)
    recipe = toy_recipe(Brecq, registry=registry, bits=3, **QUICK)
    plans = []
    for size in (2, 8):
        data = recipe.data.model_copy(update={"batch_size": size})
        plans.append(run(recipe.model_copy(update={"data": data}), registry=registry).plan)
    found = [errors(plan) for plan in plans]
    for name in found[0]:
        assert found[0][name][0] == pytest.approx(found[1][name][0], rel=0.05)


class Answer(Technique):
    """Returns the reconstruction of the test for the block ``head``."""

    class Config(Config):
        use: Literal["test.answer"] = "test.answer"

    answer = staticmethod(lambda block: None)

    @hookimpl
    def qplug_reconstruct(self, block):
        return type(self).answer(block) if block.name == "head" else None


class Liar(Learner):
    """Returns a weight that is not on the grid of its quantizer."""

    def __init__(self, start, weight):
        super().__init__()
        self.bits, self.start, self.weight = start.bits, start, torch.nn.Parameter(weight.clone())

    def learned(self):
        return {"codes": [self.weight]}

    def forward(self, x):
        return self.weight

    def harden(self):
        return self.start, self.weight.detach() + 0.01234


class Spoiled(LearnedStepSize):
    """Hardens into a much worse quantizer, and has undecided bits."""

    def soft_bits(self):
        return torch.tensor([0.0, 0.5, 1.0, 0.9])

    def harden(self):
        return self.start.scaled(10.0), None


def spoil(block):
    grid = next(d.quantizer for d in block.decisions if d.site.role == "input")
    return Reconstruction({"head.input": Spoiled(grid)}, {"step_sizes": Rate(1e-3)}, iterations=1)


def test_a_block_with_a_larger_error_stays_unchanged_and_the_plan_says_so():
    spoiling = type("Answer", (Answer,), {"answer": staticmethod(spoil)})
    start, unchanged = (reconstructed(t, bits=4).plan.decisions["head.input"] for t in (Answer, spoiling))
    assert unchanged.quantizer.to_dict() == start.quantizer.to_dict()
    before, after = errors([unchanged])["head"]
    assert after > before
    assert unchanged.reason.endswith("50.0% of the bits still soft, so the unit stays unchanged")
    assert (start.undone, unchanged.undone) == ("", "test.answer")


def test_a_reconstruction_that_was_undone_is_in_the_summary_the_plan_and_the_warnings(tmp_path):
    spoiling = type("Answer", (Answer,), {"answer": staticmethod(spoil)})
    cache = Cache(tmp_path)
    for _ in range(2):  # the second time from the cache
        result = reconstructed(spoiling, bits=4, cache=cache)
        assert any("test.answer changed nothing in 1 of 1 reconstructions" in warning for warning in result.warnings)
        (group,) = (group for group in decisions(result) if group["undone"])
        assert (group["undone"], group["sites"]) == ("test.answer", 1)
        assert "; test.answer undone" in summary_tables(result, CONVENTIONS[DEFAULT])[0].plain()
        plan = json.loads(json.dumps(result.plan.to_dict()))
        assert [row["site"]["name"] for row in plan["decisions"] if row.get("undone")] == ["head.input"]
        assert [d.undone for d in Plan.from_dict(plan, installed().quantizers) if d.undone] == ["test.answer"]
    other = reconstructed(Answer, bits=4).plan.to_dict()
    assert any("reconstruction" in found.what for found in plan_differences(plan, other))


@pytest.mark.slow
def test_undecided_bits_are_a_warning_also_from_the_cache(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    learned = reconstructed(weight=0.0, cache=cache).warnings
    assert re.search(r"in \d of \d .*still soft .*[\d.]+% in \S+; .*raise weight", "".join(learned))
    monkeypatch.setattr("qplug.training.reconstruction.reconstructor.learn", None)
    assert reconstructed(weight=0.0, cache=cache).warnings == learned
    monkeypatch.undo()
    decided = reconstructed(weight=1000.0, iterations=300).warnings
    assert not any("still soft" in warning for warning in decided)


def test_undecided_bits_of_an_unchanged_block_are_a_warning():
    spoiling = type("Answer", (Answer,), {"answer": staticmethod(spoil)})
    assert any("50.0% in head" in warning for warning in reconstructed(spoiling, bits=4).warnings)


def steps_of(block):
    return {d.site.name: LearnedStepSize(copy.deepcopy(d.quantizer)) for d in block.decisions if d.site.role == "input"}


def wider(block):
    start = next(d.quantizer for d in block.decisions if d.site.role == "input")
    return LearnedStepSize(UniformQuantizer(start.scale, None, 7, start.signed))


def liar(block):
    start = next(d.quantizer for d in block.decisions if d.site.role == "weight")
    return Liar(start, block.weights["head.weight"])


RATES = {"step_sizes": Rate(1e-3), "codes": Rate(1e-3)}
WRONG = {
    "expected a Reconstruction, got int": lambda block: 3,
    "a Learner for a site of the block was expected, got 'head.bias'": lambda block: Reconstruction(
        {"head.bias": LearnedStepSize(block.decisions[0].quantizer)}, RATES
    ),
    "with a UniformQuantizer": lambda block: Reconstruction({"head.input": block.decisions[0].quantizer}, RATES),
    "head.input has 4 bits, its learner 7": lambda block: Reconstruction({"head.input": wider(block)}, RATES),
    "one of mse, fisher, perturbation, low_rank or an OutputLoss was expected as loss, got 'huber'": lambda block: (
        Reconstruction(steps_of(block), RATES, loss="huber")
    ),
    "no rate for what is learned as step_sizes": lambda block: Reconstruction(steps_of(block), {}),
    "weights that are not on the grid of its quantizer": lambda block: Reconstruction(
        {"head.weight": liar(block)}, RATES, iterations=1
    ),
    "ZeroDivisionError": lambda block: 1 // 0,
}


@pytest.mark.parametrize("message", WRONG)
def test_invalid_reconstructions_are_refused_with_technique_and_block(message):
    technique = type("Answer", (Answer,), {"answer": staticmethod(WRONG[message])})
    with pytest.raises(PluginError) as refused:
        reconstructed(technique, bits=4)
    assert message in str(refused.value)
    assert "test.answer" in refused.value.where
    assert "head" in refused.value.where


def test_a_block_without_a_technique_stays_unchanged():
    technique = type(
        "Answer",
        (Answer,),
        {
            "answer": staticmethod(
                lambda block: Reconstruction(steps_of(block), {"step_sizes": Rate(0.01)}, iterations=5)
            )
        },
    )
    plan = reconstructed(technique, bits=4).plan
    touched = {d.site.module for d in plan if "test.answer" in d.reason}
    assert touched == {"head"}
    assert isinstance(plan.decisions["head.input"].quantizer, UniformQuantizer)
    assert plan.decisions["head.input"].quantizer.bits == 4


@pytest.mark.slow
def test_qdrop_changes_the_result():
    plain, dropped = (reconstructed(**more).plan.to_dict() for more in ({}, {"keep": 0.5}))
    assert plain != dropped
