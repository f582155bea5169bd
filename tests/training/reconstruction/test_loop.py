"""The reconstruction loop on layers with a known optimal rounding."""

import itertools

import pytest
import torch
from qplug_plugins.brecq.rounding import LearnedRounding
from reconstruction_toys import RATES, Layer, problem

from qplug import PluginError, Reconstruction
from qplug.training.reconstruction.capture import Calls
from qplug.training.reconstruction.iteration import mix_at_random
from qplug.training.reconstruction.loop import _beta, _random_batches, learn
from qplug.training.reconstruction.losses import MeanSquared


def error(weight, moved, x):
    return float((x @ (moved - weight).T).square().sum(-1).mean())


def learned(original, x, grid, **more):
    learner = LearnedRounding(original, grid, learn_scale=more.pop("learn_scale", False))
    settings = {"iterations": 1000, "batch_size": 64, "weight": 1.0, "warmup": 0.0, **more}
    torch.manual_seed(0)
    calls = Calls(x, x @ original.T)
    learn(Layer(learner), Reconstruction({"w": learner}, RATES, **settings), calls, x, MeanSquared())
    return learner


@pytest.mark.slow
def test_the_error_is_between_the_best_rounding_and_nearest_rounding():
    """Soft bits converge to a local minimum: seed 0 removes a tenth of nearest rounding's error, others two thirds."""
    found = []
    for seed in range(3):
        weight, x, grid = problem(seed=seed)
        _, values = learned(weight, x, grid).harden()
        floor = (weight / grid.scale).floor()
        best = torch.empty_like(weight)
        for row in range(len(weight)):
            codes = [floor[row] + torch.tensor(up) for up in itertools.product((0.0, 1.0), repeat=weight.shape[1])]
            moved = torch.stack(codes).clamp(grid.low, grid.high) * grid.scale[row]
            best[row] = moved[((moved - weight[row]) @ x.T).square().sum(1).argmin()]
        found.append([error(weight, moved, x) for moved in (best, values, grid.infer(weight))])
        assert found[-1][0] <= found[-1][1] * 1.001 < found[-1][2]
    totals = torch.tensor(found).sum(0)
    assert totals[1] < 0.75 * totals[2]


@pytest.mark.parametrize(("entries", "expected"), [(1, 8), (4, 32), (128, 256)])
def test_an_iteration_uses_all_entries_of_its_images(entries, expected):
    weight, x, grid = problem()
    seen = []

    class Counting(MeanSquared):
        def forward(self, difference, images):
            seen.append((len(difference), len(images.unique())))
            return super().forward(difference, images)

    learner = LearnedRounding(weight, grid)
    settings = Reconstruction({"w": learner}, RATES, iterations=2, batch_size=8)
    learn(Layer(learner), settings, Calls(x, x @ weight.T, entries=entries), x, Counting())
    assert seen == [(expected, expected)] * 2


def test_every_bit_is_decided_and_every_weight_is_a_neighbor_on_the_grid():
    weight, x, grid = problem()
    learner = learned(weight, x, grid)
    assert float(learner.penalty(2.0).detach()) < 0.01 * weight.numel()
    quantizer, values = learner.harden()
    assert torch.equal(quantizer.infer(values), values)
    inside = weight.abs() < grid.scale * grid.high
    assert ((values - weight).abs() < grid.scale * (1 + 1e-5))[inside].all()


def test_without_a_penalty_the_bits_stay_soft_and_the_output_exact():
    weight, x, grid = problem()
    learner = learned(weight, x, grid, weight=0.0)
    assert float(learner.penalty(2.0).detach()) > 1.0
    assert error(weight, learner(weight).detach(), x) < 0.01 * error(weight, grid.infer(weight), x)


@pytest.mark.slow
def test_scales_are_learned_on_request():
    weight, x, grid = problem()
    assert torch.equal(learned(weight, x, grid).harden()[0].scale, grid.scale)
    learner = learned(weight, x, grid, learn_scale=True)
    quantizer, values = learner.harden()
    assert not torch.equal(quantizer.scale, grid.scale)
    assert torch.equal(quantizer.infer(values), values)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_result():
    weight, x, grid = problem()
    assert torch.equal(learned(weight, x, grid).logits, learned(weight, x, grid).logits)


def test_an_error_that_is_not_finite_names_the_iteration():
    weight, x, grid = problem()
    x[:] = torch.inf
    with pytest.raises(PluginError, match="not finite from iteration 0 of 3"):
        learned(weight, x, grid, iterations=3)


def test_the_exponent_falls_linearly_after_the_warmup():
    settings = Reconstruction({}, {}, beta=(20.0, 2.0), warmup=0.2)
    assert _beta(0.1, settings) is None
    assert _beta(0.2, settings) == pytest.approx(20.0)
    assert _beta(0.6, settings) == pytest.approx(11.0)
    assert _beta(1.0, settings) == pytest.approx(2.0)


def test_batches_are_cut_from_permutations():
    torch.manual_seed(0)
    draws = _random_batches(12, 4)
    for _ in range(3):
        assert sorted(torch.cat([next(draws) for _ in range(3)]).tolist()) == list(range(12))


@pytest.mark.slow
def test_a_batch_has_at_most_all_images():
    weight, x, grid = problem()
    many, all_of_them = (learned(weight, x, grid, batch_size=size) for size in (1000, 256))
    assert torch.equal(many.logits, all_of_them.logits)


def test_qdrop_mixes_elements():
    torch.manual_seed(0)
    mixed = mix_at_random(torch.ones(10_000), torch.zeros(10_000), 0.7)
    assert set(mixed.tolist()) == {0.0, 1.0}
    assert float(mixed.mean()) == pytest.approx(0.7, abs=0.02)
    assert torch.equal(mix_at_random(torch.ones(5), torch.zeros(5), 1.0), torch.ones(5))
