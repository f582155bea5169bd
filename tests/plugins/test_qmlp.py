"""Q-MLP's rewrites: equations 2 to 4 in float64, the replaced modules, and preserved functions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numeric_toys import mixer, steps
from plugin_toys import make
from qplug_plugins.qmlp import BoundedActivation, Norm, TokenMixers
from qplug_plugins.qmlp.modules import MultipleTokenMixers, Pact
from torch import nn

from qplug import InputError
from qplug.models.equivalence import EquivalenceCheck
from qplug.models.zoo import ZOO
from qplug.pipeline.stages.rewrite import rewrite_modules


def zoo(name):
    torch.manual_seed(0)
    return ZOO[name].build().eval().requires_grad_(False)


def affine(channels=6):
    from timm.models.mlp_mixer import Affine

    norm = Affine(channels).eval().requires_grad_(False)
    norm.alpha.copy_(torch.randn(1, 1, channels))
    norm.beta.copy_(torch.randn(1, 1, channels))
    return norm


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1)) * 3 + 1


@pytest.mark.parametrize("start", ["fresh", "affine"])
def test_layer_norm_is_equation_3(start):
    before = affine()
    state = copy.deepcopy(before.state_dict())
    rewrite = make(Norm, start=start, eps=1e-3).qplug_rewrite_norm(name="norm1", module=before)
    x = X.double().numpy()
    gain, offset = (1.0, 0.0) if start == "fresh" else (before.alpha.numpy(), before.beta.numpy())
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3) * gain + offset
    np.testing.assert_allclose(rewrite.module(X), expected, rtol=1e-5, atol=1e-6)
    assert (rewrite.preserves, rewrite.reason) == (False, "Affine → LayerNorm")
    assert not any(parameter.requires_grad for parameter in rewrite.module.parameters())
    assert state.keys() == before.state_dict().keys()
    assert all(torch.equal(before.state_dict()[name], value) for name, value in state.items())


def test_batch_norm_is_the_affine_until_training_moves_it():
    before = affine()
    rewrite = make(Norm, to="batch_norm", start="affine", eps=1e-3).qplug_rewrite_norm(name="norm1", module=before)
    torch.testing.assert_close(rewrite.module(X), before(X))
    assert rewrite.preserves
    trained = copy.deepcopy(rewrite.module).train()
    tokens = X.flatten(0, 1).double().numpy()
    normal = (X.double().numpy() - tokens.mean(0)) / np.sqrt(tokens.var(0) + 1e-3)
    expected = normal * before.alpha.numpy() * np.sqrt(1.001) + before.beta.numpy()
    np.testing.assert_allclose(trained(X), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trained.running_mean, 0.1 * tokens.mean(0), rtol=1e-5)

    fresh = make(Norm, to="batch_norm").qplug_rewrite_norm(name="norm1", module=before)
    assert not fresh.preserves
    torch.testing.assert_close(fresh.module(X), X)


def test_norms_that_restrict_ranges_already_stay():
    for module in (nn.LayerNorm(6), nn.BatchNorm1d(6)):
        assert make(Norm).qplug_rewrite_norm(name="norm1", module=module) is None
    assert make(Norm, match=("*.norm2",)).qplug_rewrite_norm(name="blocks.0.norm1", module=affine()) is None
    assert make(Norm, match=("*.norm2",)).qplug_rewrite_norm(name="blocks.0.norm2", module=affine())


def test_the_affine_of_resmlps_authors_has_vectors():
    class Affine(nn.Module):
        def __init__(self):
            super().__init__()
            self.alpha, self.beta = nn.Parameter(torch.arange(1.0, 7.0)), nn.Parameter(torch.ones(6))

    norm = make(Norm, start="affine").qplug_rewrite_norm(name="n", module=Affine()).module
    assert (norm.weight.tolist(), norm.bias.tolist()) == ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0] * 6)


def test_pact_is_equation_4_both_ways_and_its_bound_learns_from_what_it_clips():
    pact, x = Pact(1.5), torch.tensor([-2.0, -0.1, 0.0, 0.7, 1.5, 1.6, 40.0], requires_grad=True)
    y, values = pact(x), x.detach().double().numpy()
    np.testing.assert_allclose(y.detach(), 0.5 * (np.abs(values) - np.abs(values - 1.5) + 1.5), atol=1e-12)
    np.testing.assert_array_equal(y.detach(), np.clip(values, 0, 1.5))
    y[[0, 1, 3, 5, 6]].sum().backward()  # where Eq. 4 has a derivative
    assert x.grad.tolist() == [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert float(pact.alpha.grad) == 2.0
    assert "alpha=1.5" in repr(pact)


def test_relu_and_gelu_are_bounded_and_nothing_else():
    from timm.layers import QuickGELU

    pact, relu6 = make(BoundedActivation, alpha=4.0), make(BoundedActivation, to="relu6")
    for module, name in ((nn.ReLU(), "ReLU"), (nn.GELU(), "GELU"), (QuickGELU(), "GELU")):
        rewrite = pact.qplug_rewrite_activation(name="act", module=module)
        assert (float(rewrite.module.alpha), rewrite.preserves) == (4.0, False)
        assert rewrite.reason == f"{name} → PACT, α = 4"
        rewrite = relu6.qplug_rewrite_activation(name="act", module=module)
        assert rewrite.module(torch.tensor([-1.0, 3.0, 9.0])).tolist() == [0.0, 3.0, 6.0]
        assert rewrite.reason == f"{name} → ReLU6"
    for module in (nn.ReLU6(), nn.SiLU(), nn.Sigmoid(), Pact(1.0)):
        assert pact.qplug_rewrite_activation(name="act", module=module) is None
    assert make(BoundedActivation, match=("x",)).qplug_rewrite_activation(name="act", module=nn.ReLU()) is None


@pytest.mark.parametrize(
    ("build", "sizes", "mixers", "parameters"),
    [
        (mixer, (3, 32, 32), "mlp_tokens", None),
        (lambda: zoo("mixer_digits"), (1, 8, 8), "mlp_tokens", 2 * 16 * 32 + 16 + 32),
        (lambda: zoo("resmlp_digits"), (1, 8, 8), "linear_tokens", 16 * 16 + 16),
    ],
)
def test_token_mixers_start_as_copies_and_the_function_stays(build, sizes, mixers, parameters):
    model = build()
    images = torch.randn(2, *sizes)
    before, count = model(images), sum(p.numel() for p in model.parameters())
    step = make(TokenMixers, groups=4)
    changes = rewrite_modules(model, steps(step), EquivalenceCheck(model, images))
    assert [change.where for change in changes] == [f"blocks.{i}.{mixers}" for i in range(len(model.blocks))]
    assert {(c.preserves, c.reason) for c in changes} == {(True, "one token mixer → 4, each for a group of channels")}
    torch.testing.assert_close(model(images), before)
    if parameters:
        assert sum(p.numel() for p in model.parameters()) == count + 3 * len(model.blocks) * parameters


@pytest.mark.parametrize(("channels", "groups", "sizes"), [(8, 4, [2, 2, 2, 2]), (10, 4, [3, 3, 2, 2])])
def test_each_group_of_channels_has_one_mixer(channels, groups, sizes):
    mixers = MultipleTokenMixers(nn.Linear(5, 5).requires_grad_(False), groups)
    x = torch.randn(2, channels, 5)
    before = mixers(x)
    mixers.mixers[1].weight.add_(1.0)
    moved = (mixers(x) - before).abs().amax((0, 2)) > 0
    start = sizes[0]
    assert moved.nonzero().flatten().tolist() == list(range(start, start + sizes[1]))
    with pytest.raises(InputError, match=f"3 channels cannot be divided into {groups} groups"):
        mixers(torch.randn(2, 3, 5))


def test_all_of_them_together_leave_a_model_that_computes():
    model = zoo("resmlp_digits")
    images = torch.randn(2, 1, 8, 8)
    changes = rewrite_modules(model, steps(Norm, BoundedActivation, TokenMixers), EquivalenceCheck(model, images))
    assert [(change.technique, change.preserves) for change in changes] == [
        *[("qmlp.norm", False)] * 9,
        *[("qmlp.bounded_activation", False)] * 4,
        *[("qmlp.token_mixers", True)] * 4,
    ]
    assert float(model(images).isfinite().all())


def test_bounds_hold_on_every_input():
    model = zoo("convmixer_digits")
    rewrite_modules(model, steps(make(BoundedActivation, alpha=0.5)), None)
    bounds = []
    for module in model.modules():
        if isinstance(module, Pact):
            module.register_forward_hook(lambda _, __, out: bounds.append((float(out.min()), float(out.max()))))
    model(torch.randn(4, 1, 8, 8) * 100)
    assert len(bounds) == 9
    assert all(low >= 0 and high <= 0.5 for low, high in bounds)
