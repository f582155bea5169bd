"""Learning rates, parameter groups, moving averages, and an optimizer's state as tensors and JSON."""

import json

import pytest
import torch
from torch import nn

from qplug import InputError, PluginError
from qplug.training.supervised.checkpoint import optimizer_state, restore_optimizer
from qplug.training.supervised.config import FineTune
from qplug.training.supervised.optimize import Average, optimizer_of, rate_factor


def parameters():
    torch.manual_seed(0)
    return {"fc.weight": nn.Parameter(torch.randn(3, 2)), "fc.bias": nn.Parameter(torch.randn(3))}


def test_the_rate_grows_and_then_follows_a_cosine():
    assert [rate_factor(x, 0.2) for x in (0.0, 0.1, 0.2)] == [0.0, 0.5, 1.0]
    assert rate_factor(0.6, 0.2) == pytest.approx(0.5)
    assert rate_factor(1.0, 0.2) == pytest.approx(0.0)
    assert rate_factor(0.9, 0.2, "constant") == 1.0


def test_biases_and_scales_do_not_decay_and_bounds_do():
    given = {**parameters(), "act.alpha": nn.Parameter(torch.tensor(6.0))}
    scales = {"fc.weight/steps/0": nn.Parameter(torch.zeros(3, 1))}
    made = optimizer_of(FineTune(epochs=1, weight_decay=0.05), given, {"act.alpha"}, scales)
    found = [([p.shape for p in group["params"]], group["weight_decay"]) for group in made.param_groups]
    assert found == [([(3, 2), ()], 0.05), ([(3,)], 0.0), ([(3, 1)], 0.0)]


def test_an_unknown_optimizer_is_refused_with_a_suggestion():
    with pytest.raises(InputError, match="did you mean 'adamw'"):
        optimizer_of(FineTune(epochs=1, optimizer="adamww"), parameters(), set(), {})


def test_an_average_follows_the_formula_and_can_be_swapped():
    given = parameters()
    average, expected = Average(given, 0.9), given["fc.bias"].detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            given["fc.bias"] += 1.0
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * given["fc.bias"].detach()
    assert torch.allclose(average.tensors["fc.bias"], expected)
    now = given["fc.bias"].detach().clone()
    average.swap()
    assert torch.allclose(given["fc.bias"], expected)
    average.swap()
    assert torch.equal(given["fc.bias"], now)


@pytest.mark.parametrize("name", ["adamw", "sgd", "nadamw", "lion", "adopt", "rmsproptf"])
def test_an_optimizer_resumes_from_tensors_and_json(name):
    def steps(made, given, count):
        for i in range(count):
            made.zero_grad()
            sum(((p - 0.1 * i) ** 2).sum() for p in given.values()).backward()
            made.step()

    settings = FineTune(epochs=1, optimizer=name, learning_rate=0.05)
    whole = parameters()
    made = optimizer_of(settings, whole, set(), {})
    steps(made, whole, 3)
    tensors, about = optimizer_state(made)
    tensors, about = {k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(about))
    resumed = {name: nn.Parameter(p.detach().clone()) for name, p in whole.items()}
    again = optimizer_of(settings, resumed, set(), {})
    restore_optimizer(again, tensors, about)
    steps(made, whole, 4)
    steps(again, resumed, 4)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_state_that_a_checkpoint_cannot_store_is_named():
    made = torch.optim.SGD(list(parameters().values()), lr=0.1)
    made.state[made.param_groups[0]["params"][0]]["queue"] = [1, 2]
    with pytest.raises(PluginError, match="state 'queue' of SGD is a list"):
        optimizer_state(made)
