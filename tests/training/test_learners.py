"""Soft bits, learned scales, and the gradients of fake quantization, against float64 and autograd."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from qplug import (
    LearnedStepSize,
    LogQuantizer,
    Quantizer,
    QuantSpec,
    Region,
    RegionQuantizer,
    Site,
    SiteKind,
    UniformQuantizer,
    bit_penalty,
    learned_step_sizes,
    rectified_sigmoid,
    soft_bit_logits,
)
from qplug.quantization.plan import Decision
from qplug.quantization.quantizers.base import clamp_ste, fake_quantize, round_ste

THREE = (Region(-1000, 0, -3, 0), Region(0, 0, 0, 3), Region(4, 2, 1, 7))


@given(st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=20))
def test_logits_are_the_inverse_of_the_rectified_sigmoid(bits):
    bits = torch.tensor(bits)
    assert torch.allclose(rectified_sigmoid(soft_bit_logits(bits)), bits, atol=1e-6)


def test_the_rectified_sigmoid_equals_the_papers_equation():
    v = np.linspace(-6, 6, 101)
    expected = np.clip(1 / (1 + np.exp(-v)) * (1.1 + 0.1) - 0.1, 0, 1)
    assert np.allclose(rectified_sigmoid(torch.tensor(v)).numpy(), expected)
    assert {0.0, 1.0} <= set(expected.tolist())


@pytest.mark.parametrize("beta", [2.0, 20.0])
def test_the_penalty_is_zero_only_at_hard_bits(beta):
    assert float(bit_penalty(torch.tensor([0.0, 1.0, 1.0]), beta)) == 0.0
    assert float(bit_penalty(torch.tensor([0.5, 0.5]), beta)) == 2.0
    assert 0.0 < float(bit_penalty(torch.tensor([0.9]), beta)) < 1.0


@pytest.mark.parametrize("beta", [1.5, 2.0, 20.0, torch.tensor(7.3, dtype=torch.float64)])
def test_the_gradient_of_the_penalty_equals_the_formula(beta):
    bits = torch.cat(
        [torch.tensor([0.0, 0.5, 1.0]), torch.rand(50, generator=torch.Generator().manual_seed(0))]
    ).double()
    found = []
    for function in (lambda b: (1.0 - (2.0 * b - 1.0).abs().pow(beta)).sum(), lambda b: bit_penalty(b, beta)):
        leaf = bits.clone().requires_grad_(True)
        value = function(leaf)
        (3.0 * value).backward()
        found.append((value.detach(), leaf.grad))
    for formula, ours in zip(*found, strict=True):
        assert torch.allclose(formula, ours, atol=1e-10)
    assert found[1][1][1] == 0.0


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(), (5, 1)])
def test_gradients_are_straight_through(symmetric, shape):
    torch.manual_seed(0)
    x = torch.randn(5, 40, dtype=torch.float64) * 3
    low, high = (-8, 7) if symmetric else (0, 15)
    zero = torch.zeros(shape, dtype=torch.float64) if symmetric else torch.full(shape, 6.0, dtype=torch.float64)
    scale = torch.rand(shape, dtype=torch.float64) * 0.3 + 0.2
    upstream = torch.randn_like(x)
    found = []
    for function in (
        lambda x, s: (clamp_ste(round_ste(x / s + zero), low, high) - zero) * s,
        lambda x, s: fake_quantize(x, s, zero, low, high),
    ):
        leaf, step = x.clone().requires_grad_(True), scale.clone().requires_grad_(True)
        out = function(leaf, step)
        out.backward(upstream)
        found.append((out.detach(), leaf.grad, step.grad))
    for composed, fused in zip(*found, strict=True):
        assert composed.shape == fused.shape
        assert torch.allclose(composed, fused, atol=1e-12)
    assert 0 < int((found[0][1] == 0).sum()) < x.numel()


def test_a_learned_scale_starts_unchanged_and_reaches_the_best_scale():
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    start = UniformQuantizer.from_range(x.min() * 1.5, x.max() * 1.5, QuantSpec(3))
    learner = LearnedStepSize(start)
    assert torch.equal(learner(x), start(x))
    optimizer = torch.optim.Adam([p for group in learner.learned().values() for p in group], lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (learner(x) - x).square().mean().backward()
        optimizer.step()
    quantizer, values = learner.harden()
    assert values is None
    factors = np.geomspace(0.2, 1.2, 200)
    errors = [float((start.scaled(f).infer(x) - x).square().mean()) for f in factors]
    assert float((quantizer.infer(x) - x).square().mean()) <= 1.02 * min(errors)
    assert (quantizer.bits, quantizer.signed) == (3, True)


@pytest.mark.parametrize("start", [LogQuantizer(1.0, 2, 4), RegionQuantizer(0.05, THREE, 4)], ids=["log", "regions"])
def test_every_scalable_quantizer_has_lsqs_gradient(start):
    """x̂ − x inside the range and x̂ outside, in units of the step."""
    top = float(start(torch.tensor([1e6])))
    x = torch.rand(500, generator=torch.Generator().manual_seed(0)) * 1.5 * top
    learner = LearnedStepSize(start)
    values = learner(x)
    assert torch.equal(values, start(x))
    values.sum().backward()
    leaf = x.clone().requires_grad_(True)
    start(leaf).sum().backward()
    assert 0 < int(leaf.grad.sum()) < len(x)
    assert float(learner.log_factor.grad) == pytest.approx(float((values.detach() - x * leaf.grad).sum()), rel=1e-3)
    with torch.no_grad():
        learner.log_factor.fill_(0.3)
    hardened, _ = learner.harden()
    assert type(hardened) is type(start)
    assert torch.allclose(hardened(x), learner(x), rtol=1e-5)


def test_channels_with_a_common_scale_continue_to_share_it():
    start = UniformQuantizer(torch.tensor([0.1, 0.2, 0.1, 0.3]), torch.tensor([3.0, 3.0, 3.0, 5.0]), 4, False)
    learner = LearnedStepSize(start)
    assert learner.log_factor.shape == (3,)
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(learner(x), start(x))
    with torch.no_grad():
        learner.log_factor.copy_(torch.tensor([0.1, 0.2, 0.3]))
    scale = learner.harden()[0].scale
    assert scale[0] == scale[2]
    assert len(scale.unique()) == 3


def test_learned_step_sizes_selects_activations_with_scalable_quantizers():
    grid = UniformQuantizer(torch.tensor(0.1), None, 4, True)

    class Fixed(UniformQuantizer):
        scaled = Quantizer.scaled

    fixed = Fixed(torch.tensor(0.1), None, 4, True)
    made = {"a": (SiteKind.LINEAR_INPUT, grid), "b": (SiteKind.KEY, fixed), "c": (SiteKind.LINEAR_WEIGHT, grid)}
    decisions = [
        Decision(Site(name, kind, "m", "input", (2, 2)), QuantSpec(4), quantizer, "", "", "")
        for name, (kind, quantizer) in made.items()
    ]
    assert list(learned_step_sizes(decisions)) == ["a"]


@pytest.mark.parametrize("shape", [(), (3, 1)])
def test_the_gradient_of_the_zero_point_equals_autograds(shape):
    x = torch.linspace(-2.0, 3.0, 24, dtype=torch.float64).view(3, 8)
    weights = torch.linspace(0.5, 1.5, 24, dtype=torch.float64).view(3, 8)

    def grads(quantize):
        given = x.clone().requires_grad_()
        scale, zero = (
            torch.full(shape, 0.21).double().requires_grad_(),
            torch.full(shape, 4.0).double().requires_grad_(),
        )
        (quantize(given, scale, zero) * weights).sum().backward()
        return given.grad, scale.grad, zero.grad

    def composed(given, scale, zero):
        return (clamp_ste(round_ste(given / scale + zero), 0, 15) - zero) * scale

    expected = grads(composed)
    for ours, theirs in zip(grads(lambda g, s, z: fake_quantize(g, s, z, 0, 15)), expected, strict=True):
        assert torch.allclose(ours, theirs)
    assert expected[2].abs().max() > 0.1


@pytest.mark.parametrize(("zero", "whole"), [(4.0, True), (4.25, False)])
def test_a_learned_zero_point_stays_integer_or_float(zero, whole):
    start = UniformQuantizer(torch.tensor(0.1), torch.tensor(zero), 4, False)
    learner = LearnedStepSize(start, zero_point=True)
    assert set(learner.learned()) == {"step_sizes", "zero_points"}
    x = torch.linspace(-1.5, 0.5, 64)
    before = (learner(x) - x).square().mean()
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        (learner(x) - x).square().mean().backward()
        optimizer.step()
    made, _ = learner.harden()
    assert torch.equal(made.infer(x), learner(x))
    assert (made.infer(x) - x).square().mean() < 0.05 * before  # 0.125 → 0.0015, the zero point 4 → 11
    assert (made.zero_point == made.zero_point.round()) == whole
    assert made.zero_point > 8


def test_symmetric_quantizers_have_no_zero_point_to_learn():
    learner = LearnedStepSize(UniformQuantizer(torch.tensor(0.1), None, 4, True), zero_point=True)
    assert set(learner.learned()) == {"step_sizes"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_rounded_in_float32(dtype):
    x = torch.linspace(-1.0, 1.0, 999).to(dtype)
    step = torch.tensor(0.0079)
    expected = UniformQuantizer(step, None, 8, True).infer(x.float())
    found = fake_quantize(x, step, None, -128, 127)
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))
