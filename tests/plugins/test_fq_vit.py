"""FQ-ViT: power-of-two factors and probabilities, and the integer exponential."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plugin_toys import activation, choose, make, toy_swin
from qplug_plugins.fq_vit import LogIntSoftmax, PowerOfTwoFactor
from qplug_plugins.fq_vit.integer_softmax import IntegerSoftmax
from torch import nn

from qplug import Granularity, QuantSpec, SiteKind, UniformQuantizer
from qplug.models.adapters import ADAPTERS, make_explicit
from qplug.testing import toy_images, toy_vit

SPEC = QuantSpec(8, symmetric=False)


def norm_input(seed: int = 0) -> torch.Tensor:
    """Channels whose ranges differ by a factor of about 30, as those that LayerNorm reads do."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 16, 32, generator=generator) * torch.logspace(-1, 0.5, 32)


def test_scales_are_one_scale_times_powers_of_two_and_the_best_of_each_channel():
    x = norm_input()
    pair = activation(x, kind=SiteKind.LAYERNORM_INPUT)
    chosen = choose(make(PowerOfTwoFactor), pair, SPEC).quantizer
    whole = UniformQuantizer.from_range(pair[1].min, pair[1].max, SPEC)
    factors = torch.log2(whole.scale / chosen.scale)
    assert torch.equal(factors, factors.round())
    assert set(factors.tolist()) <= {0.0, 1.0, 2.0, 3.0}
    assert len(set(factors.tolist())) > 1
    assert torch.equal(chosen.zero_point, whole.zero_point)
    rows = x.flatten(0, 1).double().numpy()
    for channel, alpha in enumerate(factors.tolist()):  # the oracle tries every factor
        errors = []
        for k in range(4):
            step, zero = whole.scale.double().item() / 2**k, whole.zero_point.item()
            codes = np.clip(np.round(rows[:, channel] / step + zero), 0, 255)
            errors.append((((codes - zero) * step - rows[:, channel]) ** 2).sum())
        assert errors[int(alpha)] == pytest.approx(min(errors), rel=1e-4)


def test_factors_gain_on_channels_of_unlike_ranges():
    pair = activation(norm_input(), kind=SiteKind.LAYERNORM_INPUT)
    sqnr = [
        pair[1].sqnr_db(choose(make(PowerOfTwoFactor, halvings=k), pair, SPEC).quantizer(pair[1].sample))
        for k in (0, 3)
    ]
    assert sqnr[1] > sqnr[0] + 2.0  # measured: 42.0 against 47.0 dB


def test_a_range_that_the_sample_missed_is_not_clipped():
    """One value in 1,024 is 30 times as large as its channel's others, and the sample does not hold it."""
    x = torch.randn(16, 64, 8, generator=torch.Generator().manual_seed(0))
    x[3, 5, 2], x[0, 0, 7] = 30.0, -34.0
    site, stats = activation(x, kind=SiteKind.LAYERNORM_INPUT)
    stats.sample = stats.sample[500:564]
    assert stats.sample.abs().max() < 6.0
    quantizer = choose(make(PowerOfTwoFactor), (site, stats), SPEC).quantizer
    assert quantizer(stats.channel_max)[2] == pytest.approx(30.0, abs=float(quantizer.scale[2]))
    assert quantizer.scale[0] == quantizer.scale[2] / 8


def test_it_takes_inputs_of_layernorm_only():
    assert choose(make(PowerOfTwoFactor), activation(norm_input()), SPEC) is None
    pair = activation(norm_input(), kind=SiteKind.LAYERNORM_INPUT)
    assert choose(make(PowerOfTwoFactor), pair, QuantSpec(8, Granularity.PER_CHANNEL)) is None


def test_probabilities_become_powers_of_two():
    x = (3 * torch.randn(4, 8, 20, generator=torch.Generator().manual_seed(0))).softmax(-1)
    pair = activation(x, kind=SiteKind.POST_SOFTMAX)
    values = choose(make(LogIntSoftmax), pair, QuantSpec(4)).quantizer(pair[1].sample)
    assert values.max() == 1.0 or values.max() == 0.5
    positive = values[values > 0]
    assert torch.equal(positive.log2(), positive.log2().round())
    assert choose(make(LogIntSoftmax), activation(x), QuantSpec(4)) is None


@pytest.mark.parametrize("step", [0.02, 0.0625])
def test_the_integer_exponential_against_the_exact_one(step):
    x = 4 * torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    on_grid = torch.round(x.double() / step) * step
    exact, ours = on_grid.softmax(-1), IntegerSoftmax(-1, step)(x).double()
    assert torch.allclose(ours.sum(-1), torch.ones(64, dtype=torch.float64), atol=1e-6)
    assert ((ours - exact).abs().sum(-1) / 2).max() < 0.04  # total variation; measured: 0.007, 0.014, 0.024
    assert (ours.argmax(-1) == exact.argmax(-1)).all()


@pytest.mark.parametrize(("step", "near", "far"), [(1 / 256, 0.01, 0.03), (0.0625, 0.03, 0.08), (0.1, 0.04, 0.11)])
def test_the_polynomial_is_as_exact_as_documented(step, near, far):
    depth = torch.arange(0, round(10 / step) + 1, dtype=torch.float64) * step
    pairs = IntegerSoftmax(-1, step)(torch.stack([torch.zeros_like(depth), -depth], -1))
    lost = (pairs[:, 1] / pairs[:, 0] / torch.exp(-depth) - 1.0).abs()
    assert lost[depth <= 3.0].max() < near  # measured: 0.008, 0.022, 0.030
    assert lost.max() < far  # measured: 0.026, 0.076, 0.104


@pytest.mark.parametrize("build", [toy_vit, toy_swin])
def test_the_outputs_of_the_toys_hardly_change(build):
    """Of the one with windows some are masked."""
    images, model = toy_images(8), build()
    make_explicit(model, ADAPTERS, images[:1])
    before, technique = model(images), make(LogIntSoftmax, integer_exp=True)
    rewrites = [(name, technique.qplug_rewrite_module(name=name, module=m)) for name, m in model.named_modules()]
    replaced = {name: rewrite.module for name, rewrite in rewrites if rewrite is not None}
    assert len(replaced) == sum(isinstance(module, nn.Softmax) for module in model.modules()) > 1
    for name, module in replaced.items():
        model.get_submodule(name.rpartition(".")[0]).softmax = module
    moved = (model(images) - before).norm() / before.norm()
    assert 0.0 < moved < 0.003  # measured


def test_the_integer_exponential_has_softmaxs_gradient():
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.arange(7.0)
    (ours,) = torch.autograd.grad((IntegerSoftmax(-1, 0.0625)(x) * weights).sum(), x)
    (exact,) = torch.autograd.grad((x.softmax(-1) * weights).sum(), x)
    assert torch.equal(ours, exact)


def test_softmax_is_replaced_only_if_configured():
    softmax = nn.Softmax(dim=-1)
    assert make(LogIntSoftmax).qplug_rewrite_module(name="s", module=softmax) is None
    technique = make(LogIntSoftmax, integer_exp=True, step=0.125)
    rewrite = technique.qplug_rewrite_module(name="s", module=softmax)
    assert isinstance(rewrite.module, nn.Softmax)
    assert (rewrite.module.step, rewrite.preserves) == (0.125, False)
    assert technique.qplug_rewrite_module(name="g", module=nn.GELU()) is None
