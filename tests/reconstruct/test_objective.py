"""Compiled iterations: the same learning as without torch.compile, and an error that says what to do without it."""

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from mr_biq_toys import coded
from qplug_brecq import AdaRound
from qplug_brecq.rounding import LearnedRounding
from qplug_mr_biq.learner import SoftBinaryCoding
from test_loop import RATES, Layer, problem
from test_run import errors

from qplug import PluginError, Reconstruction
from qplug.pipeline import run
from qplug.reconstruct.capture import Calls
from qplug.reconstruct.loop import learn
from qplug.reconstruct.losses import MeanSquared
from qplug.reconstruct.objective import Objective, compiled
from qplug.testing.run import toy_recipe, toy_registry

LEARNERS = {
    "rounding": LearnedRounding,
    "rounding and scale": lambda weight, grid: LearnedRounding(weight, grid, learn_scale=True),
    "codes together": lambda weight, grid: SoftBinaryCoding(weight, coded(weight).quantizer),
    "codes alone": lambda weight, grid: SoftBinaryCoding(weight, coded(weight).quantizer, turn="alone"),
}


def learned(**more):
    weight, x, grid = problem()
    found = LearnedRounding(weight, grid, learn_scale=True)
    settings = Reconstruction({"w": found}, RATES, iterations=200, batch_size=64, weight=1.0, **more)
    torch.manual_seed(0)
    learn(Layer(found), settings, Calls(x, {}, x @ weight.T), (x * 4).round() / 4, MeanSquared())
    return found


def test_the_error_is_told_apart_from_what_is_minimised():
    weight, x, grid = problem()
    found = LearnedRounding(weight, grid)
    objective = Objective(Layer(found), [found], MeanSquared(), 0.25)
    call = ([x], {}, x @ weight.T, torch.arange(len(x)))
    alone, error = objective(*call, None)
    assert torch.equal(alone, error)
    assert not error.requires_grad
    minimised, same = objective(*call, torch.tensor(2.0))
    assert torch.equal(same, error)
    assert float((minimised - error).detach()) == pytest.approx(0.25 * float(found.penalty(2.0).detach()), rel=1e-4)


@pytest.mark.slow
def test_compiled_iterations_learn_what_eager_ones_learn():
    found, eager = learned(compile=True), learned()
    assert torch.allclose(found.logits, eager.logits, atol=1e-3)
    assert torch.allclose(found.log_factor, eager.log_factor, atol=1e-4)
    assert float(found.log_factor.detach().abs().max()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("make", [*LEARNERS.values()], ids=[*LEARNERS])
def test_gradients_are_those_of_an_eager_iteration(make):
    weight, x, grid = problem(outputs=8, inputs=16)
    learner = make(weight, grid)
    parameters = list(learner.parameters())
    objective = Objective(Layer(learner), [learner], MeanSquared(), 0.25)
    call = ([x], {}, x @ weight.T, torch.arange(len(x)), torch.tensor(5.0))
    eager, found = (torch.autograd.grad(f(*call)[0], parameters) for f in (objective, compiled(objective)))
    assert all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max())) for a, b in zip(eager, found, strict=True)
    )


@pytest.mark.slow
def test_a_compiled_run_gains_what_an_eager_one_does():
    """AdaRound's operations have more shapes than torch compiles of one function before it gives up, unsaid."""
    registry = toy_registry(AdaRound)
    more = {"bits": 3, "iterations": 100, "batch_size": 4, "rounding_rate": 0.02}
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        eager, found = (
            errors(run(toy_recipe(AdaRound, registry=registry, compile=compiles, **more), registry=registry).plan)
            for compiles in (False, True)
        )
    assert len(eager) > 8
    assert found.keys() == eager.keys()
    gains = [sum(after for _, after in x.values()) / sum(before for before, _ in x.values()) for x in (eager, found)]
    assert gains[1] == pytest.approx(gains[0], abs=0.05)


@pytest.mark.slow
def test_without_a_compiler_the_error_says_what_to_do():
    """A layer of a shape that nothing else here compiles, so that no cache answers."""
    weight, x, grid = problem(outputs=5, inputs=7)
    found = LearnedRounding(weight, grid)
    settings = Reconstruction({"w": found}, RATES, iterations=2, batch_size=8, compile=True)
    without = {"cpp.cxx": (None, "/nonexistent/g++"), "force_disable_caches": True}
    with torch._inductor.config.patch(without), pytest.raises(PluginError, match="nonexistent") as told:
        learn(Layer(found), settings, Calls(x, {}, x @ weight.T), x, MeanSquared())
    assert "leave out compile" in str(told.value)
