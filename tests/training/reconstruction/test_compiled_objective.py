"""Compiled iterations give the results of eager iterations; errors of the compiler contain a fix."""

import shutil

import pytest
import torch
import torch._dynamo
import torch._dynamo.utils
import torch._inductor.config
from mr_biq_toys import coded
from qplug_plugins.brecq import AdaRound, Brecq
from qplug_plugins.brecq.rounding import LearnedRounding
from qplug_plugins.mr_biq.learner import SoftBinaryCoding
from reconstruction_toys import RATES, Layer, errors, problem
from torch import nn

from qplug import LearnedStepSize, LogQuantizer, PluginError, Reconstruction, UniformQuantizer
from qplug.pipeline.run import run
from qplug.testing.run import toy_recipe, toy_registry
from qplug.training.reconstruction.capture import Calls
from qplug.training.reconstruction.loop import learn
from qplug.training.reconstruction.losses import MeanSquared
from qplug.training.reconstruction.objective import ReconstructionObjective, compiled, compiling

WEIGHTS = {
    "rounding": LearnedRounding,
    "rounding and scale": lambda weight, grid: LearnedRounding(weight, grid, learn_scale=True),
    "codes together": lambda weight, grid: SoftBinaryCoding(weight, coded(weight).quantizer),
    "codes alone": lambda weight, grid: SoftBinaryCoding(weight, coded(weight).quantizer, turn="alone"),
}
STEPS = {
    "symmetric": UniformQuantizer(torch.tensor(0.1), None, 4, True),
    "asymmetric": UniformQuantizer(torch.tensor(0.1), torch.tensor(3.0), 4, False),
    "logarithmic": LogQuantizer(2.0, 1, 4),
}


class Both(nn.Module):
    """A linear that quantizes its weight and its input."""

    def __init__(self, weight, step):
        super().__init__()
        self.linear, self.step = Layer(weight), step

    def forward(self, x):
        return self.linear(self.step(x))


def learned(**more):
    weight, x, grid = problem()
    found = LearnedRounding(weight, grid, learn_scale=True)
    settings = Reconstruction({"w": found}, RATES, iterations=200, batch_size=64, weight=1.0, **more)
    torch.manual_seed(0)
    learn(Layer(found), settings, Calls(x, x @ weight.T), (x * 4).round() / 4, MeanSquared())
    return found


def test_the_objective_returns_the_error_separately():
    weight, x, grid = problem()
    found = LearnedRounding(weight, grid)
    objective = ReconstructionObjective(Layer(found), [found], MeanSquared(), 0.25)
    call = ([x], {}, x @ weight.T, torch.arange(len(x)))
    alone, error = objective(*call, None)
    assert torch.equal(alone, error)
    assert not error.requires_grad
    minimized, same = objective(*call, torch.tensor(2.0))
    assert torch.equal(same, error)
    assert float((minimized - error).detach()) == pytest.approx(0.25 * float(found.penalty(2.0).detach()), rel=1e-4)


@pytest.mark.slow
def test_compiled_iterations_learn_what_eager_ones_learn():
    found, eager = learned(compile=True), learned()
    assert torch.allclose(found.logits, eager.logits, atol=1e-3)
    assert torch.allclose(found.log_factor, eager.log_factor, atol=1e-4)
    assert float(found.log_factor.detach().abs().max()) > 1e-3


def gradients(objective, learners, call):
    parameters = [parameter for learner in learners for learned in learner.learned().values() for parameter in learned]
    return torch.autograd.grad(objective(*call)[0], parameters)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weight", "step"),
    [
        ("rounding", "symmetric"),
        ("rounding and scale", "logarithmic"),
        ("codes together", "asymmetric"),
        ("codes alone", "asymmetric"),
    ],
)
def test_compiled_gradients_equal_eager_gradients(weight, step):
    original, x, grid = problem(outputs=8, inputs=16)
    learners = [WEIGHTS[weight](original, grid), LearnedStepSize(STEPS[step], zero_point=True)]
    objective = ReconstructionObjective(Both(*learners), learners, MeanSquared(), 0.25)
    call = ([x], {}, x @ original.T, torch.arange(len(x)), torch.tensor(5.0))
    with compiling():
        found = gradients(compiled(objective), learners, call)
    for ours, eager in zip(found, gradients(objective, learners, call), strict=True):
        assert float(eager.abs().max()) > 0.0
        assert torch.allclose(ours, eager, rtol=1e-4, atol=1e-4 * float(eager.abs().max()))


ONE_BLOCK = ("patch_embed*", "blocks.1*", "head*")


def reconstructed(technique, skip=(), **more):
    """Errors of the blocks in a run with ``skip`` in float; compiling each kind of block takes 10 s."""
    registry = toy_registry(technique)
    recipe = toy_recipe(technique, registry=registry, bits=3, batch_size=4, rounding_rate=0.02, compile=True, **more)
    values = recipe.dump()
    values["quantize"]["overrides"] = [{"match": pattern, "skip": True} for pattern in skip]
    return errors(run(type(recipe).model_validate(values), registry=registry).plan)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "warmup"), [("mse", 0.2), ("fisher", 0.0), ("low_rank", 0.0)])
def test_every_compiled_iteration_of_a_run_has_eager_gradients(loss, warmup, monkeypatch):
    """Of one block; with and without the penalty, which are two graphs, for one of the losses."""

    apart = []

    def watched(objective):
        made = compiled(objective)

        def call(*args):
            parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
            found, eager = (torch.autograd.grad(f(*args)[0], parameters) for f in (made, objective))
            differences = (float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, eager, strict=True))
            apart.append(max(differences))
            return made(*args)

        return call

    monkeypatch.setattr("qplug.training.reconstruction.iteration.compiled", watched)
    blocks = reconstructed(Brecq, ONE_BLOCK, iterations=5, loss=loss, warmup=warmup)
    assert len(apart) == 5
    assert len(blocks) == 1
    assert max(apart) < 1e-3


@pytest.mark.real
def test_a_compiled_run_with_qdrop_is_reproducible():
    once, again = (reconstructed(Brecq, ONE_BLOCK, iterations=100, keep=0.5) for _ in range(2))
    assert once == again
    before, after = map(sum, zip(*once.values(), strict=True))
    assert after < 0.9 * before


@pytest.mark.slow
def test_all_operations_are_compiled_and_equal_kinds_share_code():
    """AdaRound on 6 kinds of operations, each with and without the penalty; torch's default limit is 8."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert len(reconstructed(AdaRound, iterations=10)) == 10
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 12


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """The error message for a learner that cannot be compiled, without torch's cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    weight, x, grid = problem(outputs=5, inputs=7)

    def message_of(learner):
        found = learner(weight, grid)
        settings = Reconstruction({"w": found}, RATES, iterations=2, batch_size=8, compile=True)
        with pytest.raises(PluginError, match="leave out compile") as raised:
            learn(Layer(found), settings, Calls(x, x @ weight.T), x, MeanSquared())
        return str(raised.value)

    return message_of


@pytest.mark.slow
def test_without_a_compiler_the_error_contains_a_fix(refused):
    with torch._inductor.config.patch({"cpp.cxx": (None, "/nonexistent/g++")}):
        assert "nonexistent" in refused(LearnedRounding)


@pytest.mark.slow
def test_a_compiler_that_fails_is_quoted(refused, tmp_path):
    compiler = tmp_path / "g++"
    fails = 'for a; do case $a in *.cpp) echo "$a:1: error: no header" >&2; exit 1;; esac; done'
    compiler.write_text(f'#!/bin/sh\n{fails}\nexec {shutil.which("g++")} "$@"\n')
    compiler.chmod(0o755)
    with torch._inductor.config.patch({"cpp.cxx": (None, str(compiler))}):
        assert "error: no header" in refused(LearnedRounding)


@pytest.mark.slow
def test_a_learner_that_cannot_be_compiled_is_refused(refused):
    class Waiting(LearnedRounding):
        def forward(self, x):
            return super().forward(x) if self.logits.detach().sum() < 1e9 else x

    assert "Unsupported" in refused(Waiting)
