"""Iterations as replays of a CUDA graph give the same results as eager iterations; needs a CUDA device."""

import pytest
import torch
from qplug_plugins.brecq import Brecq
from qplug_plugins.brecq.rounding import LearnedRounding
from reconstruction_toys import RATES, Layer, errors, problem

from qplug import PluginError, Reconstruction
from qplug.core.storage.cache import Cache
from qplug.pipeline.run import run
from qplug.testing.run import toy_recipe, toy_registry
from qplug.training.reconstruction.capture import Calls
from qplug.training.reconstruction.loop import learn
from qplug.training.reconstruction.losses import MeanSquared

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICE = torch.device("cuda")


class Waiting(LearnedRounding):
    """Reads a value from the device in every forward."""

    def forward(self, x):
        return super().forward(x) * (1.0 if float(self.logits.detach().sum()) < 1e9 else 2.0)


def learned(learner=LearnedRounding, iterations=200, **more):
    weight, x, grid = problem()
    found = learner(weight.to(DEVICE), grid.to(DEVICE), learn_scale=True)
    settings = Reconstruction({"w": found}, RATES, iterations=iterations, batch_size=64, weight=1.0, **more)
    torch.manual_seed(0)
    inputs = (x * 4).round().to(DEVICE) / 4
    learn(Layer(found).to(DEVICE), settings, Calls(x, x @ weight.T).to(DEVICE), inputs, MeanSquared())
    return found


def test_replays_learn_what_eager_iterations_learn():
    graphed, eager = learned(), learned(graph=False)
    assert torch.allclose(graphed.logits, eager.logits, atol=1e-3)
    assert torch.allclose(graphed.log_factor, eager.log_factor, atol=1e-4)
    assert float(graphed.log_factor.detach().abs().max()) > 1e-3


def test_replays_of_compiled_iterations_learn_the_same():
    assert torch.allclose(learned(compile=True).logits, learned(graph=False).logits, atol=1e-3)


def test_a_seed_fixes_the_result_and_every_replay_draws_anew():
    assert torch.equal(learned(keep=0.5).logits, learned(keep=0.5).logits)
    assert not torch.allclose(learned(keep=0.5).logits, learned().logits, atol=1e-3)


def test_a_learner_that_synchronizes_is_refused_with_a_fix():
    with pytest.raises(PluginError, match="graph=False"):
        learned(Waiting)
    assert torch.rand(1, device=DEVICE) < 1.0  # what is random still works, as it would not after a broken capture
    assert torch.allclose(learned(Waiting, graph=False).logits, learned(graph=False).logits)


@pytest.mark.parametrize("more", [{}, {"keep": 0.5}, {"loss": "fisher"}, {"compile": True}])
def test_a_run_on_the_device_reconstructs_as_on_the_cpu(more, tmp_path):
    registry = toy_registry(Brecq)
    recipe = toy_recipe(Brecq, registry=registry, bits=3, iterations=100, batch_size=4, rounding_rate=0.02, **more)
    cache = Cache(tmp_path / "cache")
    run(recipe.model_copy(update={"seed": 1}), registry=registry, device="cuda", cache=cache)
    here, there = (errors(run(recipe, registry=registry, device=d, cache=cache).plan) for d in ("cpu", "cuda"))
    first = next(iter(here))
    assert there[first][0] == pytest.approx(here[first][0], rel=0.02)
    gains = [
        sum(after for _, after in found.values()) / sum(before for before, _ in found.values())
        for found in (here, there)
    ]
    assert gains[1] == pytest.approx(gains[0], abs=0.15)
