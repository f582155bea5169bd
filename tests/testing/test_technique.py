"""The contract suite passes what is right, and says of each thing that is wrong what it is."""

import pytest
import trial_techniques as trial

import qplug
from qplug.testing import TechniqueContract, toy_run

HOOK = "qplug_make_quantizer"
HEAVY = type("Heavy", (trial.Smooth,), {"__module__": "numpy.ma"})


class TestSmooth(TechniqueContract):
    technique = trial.Smooth
    configs = ({}, {"power": 1.0})


class TestRewrites(TechniqueContract):
    technique = trial.Rewrites


class TestBits(TechniqueContract):
    technique = trial.Bits


def contract(technique):
    suite = type("Suite", (TechniqueContract,), {"technique": technique})
    return suite()


@pytest.mark.parametrize(
    ("technique", "test", "message"),
    [
        (trial.Loose, "configuration_is_strict", "accepts {'unknown_key_of_the_contract': 1}"),
        (trial.Thawed, "configuration_is_strict", "must be frozen"),
        (trial.Loose, "configuration_explains_itself", "'power' needs Field"),
        (trial.OutOfBounds, "configuration_survives_a_round_trip", "less than or equal to 1"),
        (HEAVY, "importing_it_is_light", "importing numpy.ma imports numpy"),
        (trial.Counts, "same_inputs_same_results", "two calls on the same inputs answered"),
        (trial.Writes, "same_inputs_same_results", "qplug_smooth writes to a tensor"),
        (trial.Negative, "results_are_valid", "scale is not positive"),
        (trial.BreaksPromise, "results_are_valid", "preserves=True, and the output moves by"),
        (trial.Forgets, "results_are_valid", "quantizes differently"),
        (trial.OtherBits, "results_are_valid", "the quantizer has 5 bits"),
        (trial.ManyBits, "results_are_valid", "whole numbers from 2 to 16"),
        (trial.WrongShape, "results_are_valid", "do not broadcast with"),
        (trial.Grows, "results_are_valid", "makes (7, "),
        (trial.Rude, "results_are_valid", "trial.rude: qplug_smooth changes the default dtype from torch.float32"),
        (trial.LearnsNothing, "results_are_valid", "has nothing to learn: learned() gives no parameter"),
        (trial.NotMarked, "hooks_are_those_of_the_specification", "qplug_allocate_bits is not marked with @hookimpl"),
        (trial.Misspelt, "hooks_are_those_of_the_specification", "did you mean 'qplug_allocate_bits'?"),
        (trial.Defaults, "hooks_are_those_of_the_specification", "gives 'stats' a default value"),
    ],
)
def test_the_suite_finds_what_is_wrong(technique, test, message):
    check = getattr(contract(technique), f"test_{test}")
    arguments = {"parameters": {}} if "parameters" in check.__code__.co_varnames else {}
    with pytest.raises((AssertionError, ValueError, qplug.PluginError)) as caught:
        check(**arguments)
    assert message in str(caught.value)


def test_a_technique_that_raises_is_named_with_plugin_hook_and_place():
    with pytest.raises(qplug.PluginError, match="ZeroDivisionError: nothing to divide by") as caught:
        toy_run(trial.Raises)
    assert "trial.raises" in caught.value.where
    assert "qplug.testing 0" in caught.value.where
    assert "qplug_smooth" in caught.value.where
    assert "blocks.0.norm1" in caught.value.where


@pytest.mark.parametrize(
    ("technique", "message"),
    [
        (trial.WrongShape, "the quantizer cannot quantize the site: RuntimeError: The size of tensor a"),
        (trial.Grows, "the quantizer makes (7, "),
    ],
)
def test_a_quantizer_that_does_not_fit_its_site_is_named_with_technique_and_site(technique, message):
    with pytest.raises(qplug.PluginError) as caught:
        toy_run(technique)
    assert caught.value.what.startswith(message)
    assert caught.value.where == f"{technique.name()} of qplug.testing 0, {HOOK} at patch_embed.proj.weight"
    assert "they are scale (7," in caught.value.fix


def test_a_learner_that_learns_nothing_is_named_with_technique_and_site():
    with pytest.raises(qplug.PluginError, match=r"the learner of [\w.]+ has nothing to learn") as caught:
        toy_run(trial.LearnsNothing)
    assert caught.value.where.startswith("trial.learns_nothing of qplug.testing 0, qplug_reconstruct at ")


def test_a_run_goes_on_as_if_no_setting_of_torch_had_changed_and_says_so():
    result = toy_run(trial.Rude)
    changed = [warning for warning in result.warnings if "default dtype" in warning]
    assert changed == [
        "trial.rude: qplug_smooth changed the default dtype from torch.float32 to torch.float64; qplug restored it"
    ]


def test_observers_see_every_stage():
    from qplug.pipeline.run import run
    from qplug.testing import toy_recipe, toy_registry

    class Watch:
        def __init__(self):
            self.phases = []

        @qplug.hookimpl
        def qplug_observe(self, event):
            self.phases.append((event.stage, event.phase))

    watch = Watch()
    registry = toy_registry(trial.Bits)
    run(toy_recipe(trial.Bits, registry=registry), out=None, registry=registry, observers=[watch])
    started = [stage for stage, phase in watch.phases if phase == "start"]
    assert started
    assert started == [stage for stage, phase in watch.phases if phase == "end"]


def test_a_smoothed_toy_run_says_so_in_its_plan():
    plan = toy_run(trial.Smooth, bits=8).plan
    assert {change.technique for change in plan.changes} == {"trial.smooth"}
    assert all(change.preserves for change in plan.changes)


def test_allocated_bits_reach_the_plan():
    plan = toy_run(trial.Bits, bits=4).plan
    by = {decision.bits_by for decision in plan if decision.quantizer.bits == 8}
    assert by == {"trial.bits"}
