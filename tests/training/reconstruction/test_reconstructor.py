"""Reconstruction inside a run, on toys: what it changes, what it refuses, and that a run that was stopped goes on."""

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
from qplug.core.storage.cache import Cache
from qplug.pipeline.run import run
from qplug.testing.run import toy_recipe, toy_registry


@pytest.mark.slow
@pytest.mark.parametrize("technique", [Brecq, AdaRound])
def test_outputs_come_nearer_to_the_float_ones(technique):
    plan = reconstructed(technique, iterations=150).plan
    found = errors(plan)
    assert ("blocks.1" in found) == (technique is Brecq)
    assert ("blocks.1.mlp.fc2" in found) == (technique is AdaRound)
    before, after = map(sum, zip(*found.values(), strict=True))
    assert after < 0.9 * before


@pytest.mark.slow
def test_adaround_leaves_activations_and_brecq_learns_their_steps():
    plain, block = reconstructed(AdaRound).plan, reconstructed(Brecq, steps=False).plan
    learned = reconstructed(Brecq, step_rate=0.01).plan
    for site, decision in plain.decisions.items():
        same = decision.quantizer.to_dict() == learned.decisions[site].quantizer.to_dict()
        assert same == decision.site.kind.is_weight
        assert decision.quantizer.to_dict() == block.decisions[site].quantizer.to_dict()


def test_the_run_folder_holds_what_was_learned(tmp_path):
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
    """Ends the run when so many blocks are done."""

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
def test_a_run_that_was_stopped_goes_on_to_the_same_result(tmp_path, blocks):
    whole = reconstructed().plan.to_dict()
    cache = Cache(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        reconstructed(observers=[Stop(blocks)], cache=cache)
    kept = len(list((tmp_path / "cache" / "reconstruction").rglob("*.safetensors")))
    assert kept == blocks
    again = reconstructed(cache=cache)
    assert again.plan.to_dict() == whole
    assert again.metrics["cache.seconds_saved"] > 0
    more = len(list((tmp_path / "cache" / "reconstruction").rglob("*.safetensors")))
    assert more > kept
    other = reconstructed(cache=cache, weight=0.02).plan.to_dict()
    assert other != whole


@pytest.mark.slow
def test_one_process_with_other_batches_of_captures_says_the_same():
    """The batch size of the data decides how calls are captured, not what is learned."""
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
    """Answers what the test wants, for the block ``head``."""

    class Config(Config):
        use: Literal["test.answer"] = "test.answer"

    answer = staticmethod(lambda block: None)

    @hookimpl
    def qplug_reconstruct(self, block):
        return type(self).answer(block) if block.name == "head" else None


class Liar(Learner):
    """Says that a weight has become something that its quantizer would change."""

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
    """Becomes something far worse than it was, and had bits that it could not decide."""

    def soft_bits(self):
        return torch.tensor([0.0, 0.5, 1.0, 0.9])

    def harden(self):
        return self.start.scaled(10.0), None


def spoil(block):
    grid = next(d.quantizer for d in block.decisions if d.site.role == "input")
    return Reconstruction({"head.input": Spoiled(grid)}, {"step_sizes": Rate(1e-3)}, iterations=1)


def test_a_block_that_learning_made_worse_stays_as_it_was_and_the_plan_says_so():
    spoiling = type("Answer", (Answer,), {"answer": staticmethod(spoil)})
    start, kept = (reconstructed(t, bits=4).plan.decisions["head.input"] for t in (Answer, spoiling))
    assert kept.quantizer.to_dict() == start.quantizer.to_dict()
    before, after = errors([kept])["head"]
    assert after > before
    assert kept.reason.endswith("50.0% of the bits still soft, so the unit stays unchanged")


@pytest.mark.slow
def test_bits_that_no_penalty_decided_are_a_warning_also_of_a_run_that_recalls_them(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    learned = reconstructed(weight=0.0, cache=cache).warnings
    assert re.search(r"in \d of \d .*still soft .*[\d.]+% in \S+, .*raise weight", "".join(learned))
    monkeypatch.setattr("qplug.training.reconstruction.reconstructor.learn", None)
    assert reconstructed(weight=0.0, cache=cache).warnings == learned
    monkeypatch.undo()
    decided = reconstructed(weight=1000.0, iterations=300).warnings
    assert not any("still soft" in warning for warning in decided)


def test_soft_bits_of_a_block_that_stays_as_it_was_are_a_warning_too():
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
def test_answers_that_cannot_be_learned_name_technique_block_and_what_was_expected(message):
    technique = type("Answer", (Answer,), {"answer": staticmethod(WRONG[message])})
    with pytest.raises(PluginError) as refused:
        reconstructed(technique, bits=4)
    assert message in str(refused.value)
    assert "test.answer" in refused.value.where
    assert "head" in refused.value.where


def test_a_block_that_no_technique_takes_stays_as_it_is():
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
def test_dropping_learns_something_else():
    plain, dropped = (reconstructed(**more).plan.to_dict() for more in ({}, {"keep": 0.5}))
    assert plain != dropped
