"""Folding preserves the function, whatever the norm and the linears lack."""

from typing import Literal

import pytest
import torch
from numeric_toys import Sequence, calibrated, sited, steps, swin
from torch import nn

import qplug
from qplug import EquivalenceError, NormGroup, PluginError, Smoothing
from qplug.core.types import Change
from qplug.models.equivalence import EquivalenceCheck
from qplug.models.smoothing import fold
from qplug.pipeline.stages.smooth import smooth_groups
from qplug.testing import toy_images


class Halve(qplug.Technique):
    class Config(qplug.Config):
        use: Literal["toy.halve"] = "toy.halve"

    @qplug.hookimpl
    def qplug_smooth(self, group, stats):
        return Smoothing(stats.channel_mean, stats.channel_absmax.clamp_min(0.1) ** 0.5, "halved")


def group_of(norm, *linears):
    torch.manual_seed(1)
    model = Sequence(
        lambda m, x: sum(linear(m.norm(x)).sum(-1) for name, linear in m.named_children() if name != "norm"),
        norm=norm,
        **{f"l{i}": linear for i, linear in enumerate(linears)},
    )
    names = tuple(f"l{i}" for i in range(len(linears)))
    return model, NormGroup("norm", names, tuple(linear.weight.detach() for linear in linears))


NORMS = {
    "affine": lambda: nn.LayerNorm(8),
    "no bias": lambda: nn.LayerNorm(8, bias=False),
    "no affine part": lambda: nn.LayerNorm(8, elementwise_affine=False),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_function_is_preserved(norm, bias):
    model, group = group_of(NORMS[norm](), nn.Linear(8, 4, bias=bias), nn.Linear(8, 3, bias=not bias))
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
        expected, y = model(x), model.norm(x)
        smoothing = Smoothing(torch.randn(8) * 3, 10.0 ** torch.randn(8))
        fold(model, group, smoothing)
        assert torch.allclose(model(x), expected, rtol=1e-4, atol=1e-4)
        assert torch.allclose(model.norm(x), (y - smoothing.shift) / smoothing.scale, rtol=1e-4, atol=1e-4)


def test_equations_4_and_5():
    model, group = group_of(nn.LayerNorm(2), nn.Linear(2, 1))
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([2.0, 6.0]))
        model.norm.bias.copy_(torch.tensor([1.0, 4.0]))
        model.l0.weight.copy_(torch.tensor([[10.0, 20.0]]))
        model.l0.bias.copy_(torch.tensor([5.0]))
    fold(model, group, Smoothing(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 3.0])))
    assert model.norm.weight.tolist() == [1.0, 2.0]
    assert model.norm.bias.tolist() == [0.0, 2.0]
    assert model.l0.weight.tolist() == [[20.0, 60.0]]
    assert model.l0.bias.tolist() == [5.0 + 10.0 - 40.0]


def test_parameters_stay_the_same_objects_and_new_ones_want_no_gradient_where_the_weight_wants_none():
    model, group = group_of(nn.LayerNorm(8), nn.Linear(8, 4, bias=False))
    model.requires_grad_(False)
    weight = model.l0.weight
    fold(model, group, Smoothing(torch.ones(8), torch.ones(8)))
    assert model.l0.weight is weight
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("shift", "scale", "message"),
    [
        (torch.zeros(7), torch.ones(8), r"of \(8,\), received \(7,\) and \(8,\)"),
        (torch.zeros(8), torch.ones(1), r"received \(8,\) and \(1,\)"),
        (torch.zeros(8), torch.zeros(8), "scale positive"),
        (torch.zeros(8), -torch.ones(8), "scale positive"),
        (torch.full((8,), float("nan")), torch.ones(8), "finite"),
        (torch.zeros(8), torch.full((8,), float("inf")), "finite"),
    ],
)
def test_what_cannot_be_folded_is_refused_and_nothing_is_written(shift, scale, message):
    model, group = group_of(nn.LayerNorm(8), nn.Linear(8, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PluginError, match=message):
        fold(model, group, Smoothing(shift, scale))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def smoothed(model, images, *techniques):
    model, found, statistics = calibrated(model, images)
    guard = EquivalenceCheck(model, images)
    return model, found, statistics, smooth_groups(model, steps(*techniques), statistics, found, {}, guard)


def test_a_whole_model_is_smoothed_and_computes_the_same():
    images = torch.randn(4, 3, 32, 32)
    model, found = sited(swin(), images[:1])
    assert model.layers[1].downsample.reduction.bias is None
    with torch.no_grad():
        expected = model(images)
        model, found, statistics, changes = smoothed(model, images, Halve)
        assert float((model(images) - expected).norm() / expected.norm()) < 1e-5
    assert model.layers[1].downsample.reduction.bias is not None
    assert [change.where for change in changes] == list(found.groups)
    assert {(c.technique, c.preserves, c.reason) for c in changes} == {("toy.halve", True, "halved")}
    stats = statistics.stats(next(s for s in found.sites if s.name == "layers.0.blocks.0.attn.qkv.input"))
    assert torch.allclose(stats.channel_mean, torch.zeros(12), atol=1e-4)


def test_each_technique_sees_what_those_before_it_did():
    seen = []

    class Watch(Halve):
        class Config(qplug.Config):
            use: Literal["toy.watch"] = "toy.watch"

        @qplug.hookimpl
        def qplug_smooth(self, group, stats):
            seen.append((group.norm, float(stats.channel_mean.abs().max()), stats.product.rhs[0] - group.weights[0]))

    *_, changes = smoothed(None, toy_images(4), Halve, Watch)
    assert len(seen) == len(changes) == 4
    assert all(mean < 1e-4 and not difference.any() for _, mean, difference in seen)


def test_an_error_names_the_technique_and_the_norm():
    class Zero(Halve):
        @qplug.hookimpl
        def qplug_smooth(self, group, stats):
            return Smoothing(stats.channel_mean, torch.zeros_like(stats.channel_mean))

    with pytest.raises(PluginError) as caught:
        smoothed(None, toy_images(4), Zero)
    assert caught.value.where == "toy.halve of qplug-toy 1.2.3, qplug_smooth at blocks.0.norm1"


class Meddles(Halve):
    def meddle(self, weight):
        weight.mul_(1.01)  # detached, but the model's own memory

    @qplug.hookimpl
    def qplug_smooth(self, group, stats):
        self.meddle(group.weights[0])
        return Smoothing(stats.channel_mean * 0, torch.ones_like(stats.channel_mean))


def test_a_technique_that_writes_to_the_models_memory_is_refused():
    with pytest.raises(PluginError, match=r"wrote to group\.weights\[0\]") as caught:
        smoothed(None, toy_images(4), Meddles)
    assert caught.value.where == "toy.halve of qplug-toy 1.2.3, qplug_smooth at blocks.0.norm1"


def test_a_technique_that_breaks_the_function_is_refused(monkeypatch):
    monkeypatch.setattr(Meddles, "meddle", lambda self, weight: weight.data.mul_(1.01))  # torch counts no such write
    with pytest.raises(EquivalenceError, match="at most 1e-04 was promised") as caught:
        smoothed(None, toy_images(4), Meddles)
    assert caught.value.where == "toy.halve"


class Doubles(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.gain


def test_the_guard_compares_with_the_last_accepted_state():
    model, x = Doubles(), torch.randn(2, 3)
    guard = EquivalenceCheck(model, x)
    keeps, changes = Change("a", "toy.a", True, ""), Change("b", "toy.b", False, "")
    guard.check([keeps])
    model.gain.data.fill_(1.00005)
    guard.check([keeps])  # within the tolerance
    model.gain.data.fill_(2.0)
    assert guard.error() == pytest.approx(1.0, rel=1e-3)
    guard.check([])  # no change, no opinion, and no new start
    assert guard.error() == pytest.approx(1.0, rel=1e-3)
    with pytest.raises(EquivalenceError, match=r"moved by 1.0e\+00"):
        guard.check([keeps])
    guard.check([changes])  # promised nothing
    assert guard.error() == 0.0
    model.gain.data.fill_(float("nan"))
    with pytest.raises(EquivalenceError):
        guard.check([keeps])
