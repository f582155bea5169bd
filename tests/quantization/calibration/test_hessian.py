"""Hutchinson's estimate against the exact Hessian in float64, its stop criterion, and side effects."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from numeric_toys import Sequence, sited
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn import functional as F

from qplug import InputError
from qplug.quantization.calibration.hessian import OWN_TOP1, hessian_traces, signs
from qplug.testing import toy_images, toy_vit


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double().requires_grad_(False)


def points(count=6):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def exact(model, names, x):
    """The joint Hessian of the mean loss in blocks (name, name), each (numel, numel)."""
    parameters = dict(model.named_parameters())

    def loss(*weights):
        return OWN_TOP1(functional_call(model, dict(zip(names, weights, strict=True)), (x,))) / len(x)

    blocks = hessian(loss, tuple(parameters[name].detach() for name in names))
    return [
        [block.reshape(parameters[a].numel(), -1) for b, block in zip(names, row, strict=True)]
        for a, row in zip(names, blocks, strict=True)
    ]


def forms(model, names, x, seed, probe, batch=0):
    """vᵢᵀ Σⱼ Hᵢⱼ vⱼ with the exact Hessian and the signs of the probe."""
    v = [signs(model.get_parameter(name), seed, probe, batch, name).flatten() for name in names]
    blocks = exact(model, names, x)
    return {name: float(v[i] @ sum(blocks[i][j] @ v[j] for j in range(len(names)))) for i, name in enumerate(names)}


NAMES = ["0.weight", "2.weight"]


def test_a_probe_is_the_quadratic_form_of_the_exact_hessian():
    model, x = network(), points()
    found = hessian_traces(model, NAMES, [x], probes=3, tolerance=0.0, seed=5)
    for name in NAMES:
        values = [forms(model, NAMES, x, 5, probe)[name] for probe in range(3)]
        assert found[name].value == pytest.approx(sum(values) / 3, rel=1e-10)
        assert found[name].standard_error == pytest.approx(torch.tensor(values).std().item() / 3**0.5, rel=1e-5)
        assert (found[name].probes, found[name].parameters) == (3, 12)


def test_attention_softmax_and_layernorm_have_second_derivatives():
    model, _ = sited(toy_vit().double(), toy_images(1).double())
    x, names = toy_images(2).double(), ["blocks.0.attn.proj.weight", "blocks.1.norm1.weight", "head.weight"]
    found = hessian_traces(model, names, [x], probes=1)
    expected = forms(model, names, x, 0, 0)
    for name in names:
        assert found[name].value == pytest.approx(expected[name], rel=1e-8)


@pytest.mark.slow
def test_the_mean_converges_to_the_exact_trace():
    model, x = network(), points()
    blocks = exact(model, NAMES, x)
    found = hessian_traces(model, NAMES, x.split(3), probes=1000, tolerance=0.0)
    for i, name in enumerate(NAMES):
        trace = float(blocks[i][i].trace())
        assert found[name].standard_error < 0.05 * trace  # measured: 0.018 and 0.038
        assert abs(found[name].value - trace) < 4 * found[name].standard_error  # measured: 1.8 and 2.0
        assert found[name].per_parameter == found[name].value / 12


def test_images_have_equal_weight_in_any_batches():
    """Batches have their own signs; this model has a diagonal Hessian, which does not depend on signs."""
    model = Sequence(lambda self, x: x * self.layer.weight, layer=nn.Linear(3, 1, bias=False).double())
    x = points(5)

    def loss(logits):
        return logits.square().sum()

    expected = 2 * float(x.square().sum()) / len(x)
    for batches in ([x], x.split(2), x.split(1)):
        found = hessian_traces(model, ["layer.weight"], batches, loss)["layer.weight"]
        assert found.value == pytest.approx(expected, rel=1e-12)
        assert found.probes == 2  # it does not move from the first to the second
        assert found.standard_error == pytest.approx(0.0, abs=1e-12)


def test_it_stops_when_every_running_mean_has_converged():
    model, x, progress = network(), [points()], []
    few = hessian_traces(model, NAMES, x, probes=64, tolerance=0.02, advance=progress.append)
    used = few[NAMES[0]].probes
    assert 2 < used < 64
    assert progress == list(range(1, used + 1))
    means = [
        [hessian_traces(model, NAMES, x, probes=n, tolerance=0.0)[name].value for name in NAMES]
        for n in range(1, used + 1)
    ]
    moved = [max(abs(b - a) / abs(b) for a, b in zip(before, now, strict=True)) for before, now in pairwise(means)]
    assert moved[-1] <= 0.02 < min(moved[:-1])
    assert few[NAMES[0]].value == means[-1][0]


def test_one_probe_has_no_standard_error():
    assert math.isnan(hessian_traces(network(), NAMES, [points()], probes=1)["0.weight"].standard_error)


def test_a_loss_linear_in_the_weights_and_a_weight_without_influence_have_trace_zero():
    model = Sequence(lambda self, x: self.used(x), used=nn.Linear(3, 2), idle=nn.Linear(3, 2))
    found = hessian_traces(model, ["used.weight", "idle.weight"], [points().float()], lambda logits: logits.sum())
    assert [trace.value for trace in found.values()] == [0.0, 0.0]
    found = hessian_traces(model, ["used.weight", "idle.weight"], [points().float()], lambda z: z.square().sum())
    assert found["used.weight"].value > 0
    assert found["idle.weight"].value == 0.0


def test_fused_attention_is_replaced_by_a_twice_differentiable_kernel():
    def fused(self, x):
        q, k, v = self.qkv(x).view(len(x), 1, 3, 12).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v).flatten(1)

    def explicit(self, x):
        q, k, v = self.qkv(x).view(len(x), 1, 3, 12).chunk(3, -1)
        return ((q @ k.transpose(-2, -1) / 2).softmax(-1) @ v).flatten(1)

    layer = nn.Linear(3, 36).double()
    one, other = (
        hessian_traces(Sequence(f, qkv=layer), ["qkv.weight"], [points()], probes=2, tolerance=0.0)["qkv.weight"]
        for f in (fused, explicit)
    )
    assert one.value == pytest.approx(other.value, rel=1e-9)
    assert one.value != 0.0


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


def test_an_operation_without_a_second_derivative_is_named():
    model = Sequence(lambda self, x: Once.apply(self.layer(x)), layer=nn.Linear(3, 3))
    with pytest.raises(InputError, match="without a second derivative") as caught:
        hessian_traces(model, ["layer.weight"], [points().float()])
    assert "leave out the Hessian" in caught.value.fix
    assert model.layer.weight.requires_grad


def test_the_model_is_unchanged():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    with torch.no_grad():
        hessian_traces(model, NAMES, [points()], probes=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("batches", [[], iter([points()])])
def test_exhausted_batches_are_an_error(batches):
    with pytest.raises(InputError, match="no images"):
        hessian_traces(network(), NAMES, batches, probes=2, tolerance=0.0)


def test_signs():
    like = torch.zeros(100, 100, dtype=torch.float64)
    drawn = signs(like, 0, 1, "w")
    assert drawn.dtype == torch.float64
    assert drawn.abs().eq(1).all()
    assert abs(float(drawn.mean())) < 0.05
    assert torch.equal(drawn, signs(like, 0, 1, "w"))
    assert not torch.equal(drawn, signs(like, 0, 2, "w"))


def test_a_group_has_the_sum_of_its_traces_and_its_standard_error():
    model, x = network(), [points()]
    single = [hessian_traces(model, NAMES, x, probes=n, tolerance=0.0) for n in (1, 2)]
    both = hessian_traces(model, {"both": NAMES}, x, probes=2, tolerance=0.0)["both"]
    first, mean = (sum(found[name].value for name in NAMES) for found in single)
    assert both.value == pytest.approx(mean, rel=1e-12)
    assert both.parameters == sum(model.get_parameter(name).numel() for name in NAMES)
    assert both.standard_error == pytest.approx(abs(first - mean), rel=1e-9)  # of two values: half their difference
