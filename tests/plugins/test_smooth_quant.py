"""SmoothQuant: Eq. 4 in float64, shared scales, the preserved function, and the gain."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from plugin_toys import REAL, activation, make, toy_deit, toy_swin
from qplug_plugins.mptq_vit import SqB
from qplug_plugins.smoothing import SmoothQuant
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

from qplug.core.types import NormGroup, Smoothing
from qplug.models.smoothing import fold
from qplug.testing import toy_images, toy_vit


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_equation_4(alpha):
    block, x = Block(), randn(3, 10, 6, seed=4) * 2 + 1
    y = block.norm(x)
    top = np.abs(y.double().numpy()).max((0, 1))
    weight = np.abs(np.concatenate([w.double().numpy() for w in block.group().weights])).max(0)
    eps = top**alpha / weight ** (1 - alpha)

    smoothing = make(SmoothQuant, alpha=alpha).qplug_smooth(group=block.group(), stats=activation(y)[1])
    np.testing.assert_allclose(smoothing.scale, eps, rtol=1e-5)
    assert not smoothing.shift.any()
    assert smoothing.reason == f"alpha = {alpha:g}"

    before = block(x)
    fold(block, block.group(), smoothing)
    assert moved_by(block(x), before) < 1e-5
    moved_top = block.norm(x).abs().flatten(0, 1).amax(0)
    np.testing.assert_allclose(moved_top, (top * weight) ** (1 - alpha), rtol=1e-4)  # what is left to the activation


def test_after_subtracting_the_mean_it_is_sq_b():
    y, weight = planted()
    stats, group = activation(y, weight)[1], alone(weight)
    centre = make(SqB, strength=0.0).qplug_smooth(group=group, stats=stats)
    scale = make(SmoothQuant).qplug_smooth(group=group, stats=stats.smoothed(centre)).scale
    both = make(SqB).qplug_smooth(group=group, stats=stats)
    torch.testing.assert_close(scale, both.scale)
    assert torch.equal(centre.shift, both.shift)
    assert torch.equal(centre.scale, torch.ones(8))


def test_linears_that_share_a_norm_share_one_eps():
    y = randn(2, 20, 6)
    q, k, v = randn(4, 6, seed=1), randn(4, 6, seed=2) * 3, randn(4, 6, seed=3)
    groups = NormGroup("norm1", ("q", "k", "v"), (q, k, v)), alone(torch.cat([q, k, v]))
    one, other = (make(SmoothQuant).qplug_smooth(group=group, stats=activation(y)[1]).scale for group in groups)
    assert torch.equal(one, other)


@pytest.mark.parametrize(("match", "taken"), [(["*"], True), (["norm"], True), (["*1"], True), (["norm?"], False)])
def test_match_takes_patterns_of_norms_and_linears(match, taken):
    smoothing = make(SmoothQuant, match=match).qplug_smooth(
        group=alone(torch.ones(4, 3)), stats=activation(randn(2, 5, 3))[1]
    )
    assert (smoothing is not None) is taken


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
def test_dead_channels_keep_a_scale_of_one(alpha):
    y, weight = randn(2, 20, 4), randn(5, 4, seed=1)
    y[..., 1] = 0.0
    weight[:, 2] = 0.0
    scale = make(SmoothQuant, alpha=alpha).qplug_smooth(group=alone(weight), stats=activation(y)[1]).scale
    assert scale[1] == scale[2] == 1.0
    assert scale[[0, 3]].ne(1.0).all()


def test_it_evens_out_channels_and_sq_bs_shift_adds_to_it():
    y, weight = planted(offset=3.0)
    stats, group = activation(y, weight)[1], alone(weight)
    plain, scaled, shifted = (
        loss_at_4_bits(stats, weight, s and s.qplug_smooth(group=group, stats=stats))
        for s in (None, make(SmoothQuant), make(SqB))
    )
    assert scaled < 0.7 * plain  # measured: 0.58
    assert shifted < 0.5 * scaled  # measured: 0.18


@pytest.mark.parametrize(("build", "norms"), [(toy_vit, VIT), (toy_deit, VIT), (toy_swin, SWIN)])
@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_the_function_is_preserved(build, norms, alpha):
    model = build()
    before = copy.deepcopy(model)
    assert smoothed(model, toy_images(6), make(SmoothQuant, alpha=alpha)) == norms
    assert moved(model, before, toy_images(5, seed=9)) < 1e-5  # measured: at most 5e-7
    changed = model.get_submodule(norms[0]).weight - before.get_submodule(norms[0]).weight
    assert changed.norm() > 0.1


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_the_function_of_the_real_models_is_preserved(shared, name):
    changed, error = smoothed_real(shared, name, make(SmoothQuant))
    assert len(changed) == 24
    assert error < 1e-4  # measured: 1.5e-6 (ViT-Ti), 2.0e-6 (DeiT-Ti)


def test_there_is_no_shift():
    smoothing = make(SmoothQuant).qplug_smooth(group=alone(torch.ones(4, 3)), stats=activation(randn(2, 5, 3))[1])
    assert isinstance(smoothing, Smoothing)
    assert torch.equal(smoothing.shift, torch.zeros(3))
