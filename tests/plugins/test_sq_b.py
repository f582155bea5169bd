"""SQ-b: Eq. 4 and 5 in float64, shared scales, sites without a smoothing, and the preserved function."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from plugin_toys import REAL, activation, make, toy_deit, toy_swin
from qplug_plugins.mptq_vit import SqB
from smoothing_toys import (
    SWIN,
    VIT,
    Block,
    alone,
    loss_at_4_bits,
    moved,
    moved_by,
    planted,
    randn,
    smoothed,
    smoothed_real,
)

from qplug.core.types import NormGroup
from qplug.models.smoothing import fold
from qplug.testing import toy_images, toy_vit


def expected(y: np.ndarray, weights: list[np.ndarray], *, after: bool, strength: float):
    """(mu, eps) as section 3.1 says, in float64: y (n, C)."""
    mu = y.mean(0)
    top = np.abs(y - mu).max(0) if after else np.abs(y).max(0)
    return mu, (top / np.abs(np.concatenate(weights)).max(0)) ** strength


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("strength", [0.5, 0.3, 0.0])
def test_equations_4_and_5(after, strength):
    block, x = Block(), randn(3, 10, 6, seed=4) * 2 + 1
    gamma, beta, b = (t.double().numpy().copy() for t in (block.norm.weight, block.norm.bias, block.first.bias))
    w1, w2 = (t.double().numpy().copy() for t in block.group().weights)
    y = block.norm(x)
    mu, eps = expected(y.double().flatten(0, 1).numpy(), [w1, w2], after=after, strength=strength)

    technique = make(SqB, range="after_shift" if after else "before_shift", strength=strength)
    smoothing = technique.qplug_smooth(group=block.group(), stats=activation(y)[1])
    np.testing.assert_allclose(smoothing.shift, mu, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(smoothing.scale, eps, rtol=1e-5)

    before = block(x)
    fold(block, block.group(), smoothing)
    for got, want in (
        (block.norm.weight, gamma / eps),
        (block.norm.bias, (beta - mu) / eps),
        (block.first.weight, w1 * eps),
        (block.second.weight, w2 * eps),
        (block.first.bias, b + w1 @ mu),
        (block.second.bias, w2 @ mu),  # made, since the linear had none
    ):
        np.testing.assert_allclose(got.detach(), want, rtol=2e-5, atol=2e-5)
    assert moved_by(block(x), before) < 1e-5


def test_before_and_after_the_shift_differ_where_a_channel_lies_off_zero():
    y = randn(2, 20, 3) + torch.tensor([0.0, 10.0, -10.0])
    group = NormGroup("norm", ("fc1",), (torch.ones(4, 3),))
    after, before = (
        make(SqB, range=r).qplug_smooth(group=group, stats=activation(y)[1]) for r in ("after_shift", "before_shift")
    )
    assert torch.equal(after.shift, before.shift)
    assert (before.scale[1:] > 1.4 * after.scale[1:]).all()  # sqrt(12 / 3) = 2, about
    assert float(before.scale[0]) == pytest.approx(float(after.scale[0]), rel=0.1)


def test_the_shifted_mean_is_zero_and_the_range_meets_the_weights():
    block, x = Block(), randn(3, 10, 6, seed=4) * 2 + 1
    y = block.norm(x)
    fold(block, block.group(), make(SqB).qplug_smooth(group=block.group(), stats=activation(y)[1]))
    moved = block.norm(x).flatten(0, 1)
    assert moved.mean(0).abs().max() < 1e-5
    weight = torch.cat(block.group().weights).abs().amax(0)
    torch.testing.assert_close(moved.abs().amax(0), weight, rtol=1e-4, atol=0.0)  # strength 0.5 makes them equal


def test_linears_that_share_a_norm_share_one_eps():
    """As timm fuses q, k, v: the largest weight of any of them counts."""
    y = randn(2, 20, 6)
    q, k, v = randn(4, 6, seed=1), randn(4, 6, seed=2) * 3, randn(4, 6, seed=3)
    apart = NormGroup("norm1", ("q", "k", "v"), (q, k, v))
    fused = NormGroup("norm1", ("qkv",), (torch.cat([q, k, v]),))
    one, other = (make(SqB).qplug_smooth(group=group, stats=activation(y)[1]) for group in (apart, fused))
    assert torch.equal(one.scale, other.scale)
    assert one.scale.shape == (6,)


@pytest.mark.parametrize(
    ("match", "taken"),
    [
        (["*"], True),
        (["blocks.0.norm1"], True),
        (["*.qkv"], True),
        (["*.norm2", "blocks.0.*"], True),
        (["*.norm2"], False),
        (["norm1"], False),
        (["*.NORM1"], False),
    ],
)
def test_match_takes_patterns_of_norms_and_linears(match, taken):
    group = NormGroup("blocks.0.norm1", ("blocks.0.attn.qkv",), (torch.ones(4, 3),))
    smoothing = make(SqB, match=match).qplug_smooth(group=group, stats=activation(randn(2, 5, 3))[1])
    assert (smoothing is not None) is taken


@pytest.mark.parametrize("technique", [make(SqB), make(SqB, range="before_shift")])
def test_dead_channels_keep_a_scale_of_one(technique):
    y, weight = randn(2, 20, 4), randn(5, 4, seed=1)
    y[..., 1] = 0.0
    weight[:, 2] = 0.0
    smoothing = technique.qplug_smooth(group=NormGroup("norm", ("fc1",), (weight,)), stats=activation(y)[1])
    assert smoothing.scale[1] == smoothing.scale[2] == 1.0
    assert smoothing.scale[[0, 3]].ne(1.0).all()
    assert smoothing.shift.isfinite().all()


def test_it_evens_out_channels():
    """SmoothQuant's claim: a per-tensor quantizer of the smoothed tensor loses less in the linear's output."""
    y, weight = planted()
    stats = activation(y, weight)[1]
    smoothing = make(SqB).qplug_smooth(group=alone(weight), stats=stats)
    assert loss_at_4_bits(stats, weight, smoothing) < 0.5 * loss_at_4_bits(stats, weight)  # measured: 0.31


@pytest.mark.parametrize(("build", "norms"), [(toy_vit, VIT), (toy_deit, VIT), (toy_swin, SWIN)])
@pytest.mark.parametrize("parameters", [{}, {"range": "before_shift"}, {"strength": 0.0}])
def test_the_function_is_preserved(build, norms, parameters):
    model = build()
    before = copy.deepcopy(model)
    assert smoothed(model, toy_images(6), make(SqB, **parameters)) == norms
    assert moved(model, before, toy_images(5, seed=9)) < 1e-5  # measured: at most 7e-7
    changed = model.get_submodule(norms[0]).bias - before.get_submodule(norms[0]).bias
    assert changed.norm() > 0.1


def test_the_reduction_of_a_swin_gets_a_bias():
    model = toy_swin()
    assert model.layers[1].downsample.reduction.bias is None
    smoothed(model, toy_images(6), make(SqB))
    assert model.layers[1].downsample.reduction.bias.abs().max() > 1e-3


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_the_function_of_the_real_models_is_preserved(shared, name):
    changed, error = smoothed_real(shared, name, make(SqB))
    assert len(changed) == 24
    assert error < 1e-4  # measured: 1.5e-6 (ViT-Ti), 2.1e-6 (DeiT-Ti)
