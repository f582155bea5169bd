"""RepQ-ViT: the re-parametrization in float64, log √2, the percentile search, and a toy run."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from plugin_toys import REAL, activation, choose, make, oracle, toy_deit, toy_swin, weight_site
from qplug_plugins.repq_vit import LogSqrt2, Percentile, Reparameterize
from qplug_plugins.repq_vit.percentile import search
from qplug_plugins.repq_vit.reparameterize import of_channels
from smoothing_toys import (
    SWIN,
    VIT,
    Block,
    moved,
    moved_by,
    planted,
    randn,
    smoothed,
    smoothed_real,
)

from qplug import UniformQuantizer, run
from qplug.core.text import Alarm
from qplug.core.types import Granularity, NormGroup, QuantSpec, SiteKind, Smoothing
from qplug.models.smoothing import fold
from qplug.recipe import recipe_type
from qplug.testing import toy_images, toy_recipe, toy_registry, toy_vit

A4 = QuantSpec(4, symmetric=False)
SYMMETRIC = QuantSpec(4)
SHARES = (0.999, 0.9999, 0.99999)


def after_norm(y, weight):
    """The site and statistics of a norm's output, and its group."""
    site, stats = activation(y, weight, kind=SiteKind.POST_LAYERNORM)
    stats.site = site = replace(site, source="norm")
    return (site, stats), NormGroup("norm", ("layer",), (weight,), (None,), A4)


def best_range(x, bits):
    """(s, z) of the percentiles with the least squared error of x (n,), in float64, as the released code searches."""
    results = []
    for share in SHARES:
        low, high = np.quantile(x, [1 - share, share])
        s = (high - low) / (2**bits - 1)
        z = np.round(-low / s)
        results.append((np.square(oracle(x, s, z, 0, 2**bits - 1) - x).sum(), s, z))
    return min(results)[1:]


def folded(y, weight, spec=A4, **parameters):
    """The technique after it folded, its smoothing, and the site with its statistics before and after."""
    technique, ((site, stats), group) = make(Reparameterize, **parameters), after_norm(y, weight)
    smoothing = technique.qplug_smooth(group=replace(group, input_spec=spec), stats=stats)
    return technique, smoothing, (site, stats), (site, stats.smoothed(smoothing))


def test_the_papers_equations_in_float64():
    block, x = Block(), randn(8, 40, 6, seed=4) * 2 + 1
    gamma, beta, b = (t.double().numpy().copy() for t in (block.norm.weight, block.norm.bias, block.first.bias))
    w1, w2 = (t.double().numpy().copy() for t in block.group().weights)
    y = block.norm(x)
    values = y.double().flatten(0, 1).numpy()
    s, z = np.transpose([best_range(values[:, j], 4) for j in range(6)])
    r1, r2 = s / s.mean(), z - np.round(z.mean())

    smoothing = make(Reparameterize).qplug_smooth(group=block.group(input_=A4), stats=activation(y)[1])
    before = block(x)
    fold(block, block.group(), smoothing)
    for got, want in (
        (block.norm.weight, gamma / r1),
        (block.norm.bias, (beta + s * r2) / r1),
        (block.first.weight, w1 * r1),
        (block.second.weight, w2 * r1),
        (block.first.bias, b - w1 @ (s * r2)),
        (block.second.bias, w2 @ -(s * r2)),  # made, since the linear had none
    ):
        np.testing.assert_allclose(got.detach(), want, rtol=2e-5, atol=2e-5)
    assert moved_by(block(x), before) < 1e-5
    assert smoothing.reason == f"s̃ = {s.mean():.3g}, z̃ = {round(z.mean())}"


@pytest.mark.parametrize("spec", [A4, QuantSpec(6, symmetric=False), SYMMETRIC])
def test_every_channel_keeps_the_codes_of_its_per_channel_quantizer(spec):
    y, weight = planted(offset=3.0)
    technique, _, (_, stats), (site, now) = folded(y, weight, spec)
    own = search(stats, Granularity.PER_CHANNEL, (99.9, 99.99, 99.999), lambda low, high: of_channels(low, high, spec))
    shared = technique.qplug_make_quantizer(site=site, spec=spec, stats=now).quantizer
    assert own.scale.numel() == 8
    assert shared.scale.numel() == shared.zero_point.numel() == 1
    wanted = torch.round(stats.sample / own.scale + own.zero_point).clamp(own.low, own.high)
    codes = torch.round(now.sample / shared.scale + shared.zero_point).clamp(shared.low, shared.high)
    assert (codes - wanted).abs().max() <= 1
    assert (codes != wanted).float().mean() < 1e-3  # ties, which rounding in float32 may break either way


@pytest.mark.parametrize("spec", [A4, SYMMETRIC])
def test_searched_again_after_the_folding_every_channel_finds_the_same(spec):
    technique, _, _, (site, now) = folded(*planted(offset=3.0), spec, percentiles=[99.0])  # one: no ties to break
    shared = technique.qplug_make_quantizer(site=site, spec=spec, stats=now).quantizer
    own = search(now, Granularity.PER_CHANNEL, (99.0,), lambda low, high: of_channels(low, high, spec))
    torch.testing.assert_close(own.scale, shared.scale.expand(8), rtol=1e-4, atol=0.0)
    assert bool((own.zero_point == shared.zero_point).all())


@pytest.mark.parametrize("spec", [A4, SYMMETRIC])
@pytest.mark.parametrize("bits", [2, 6, 8])
def test_at_other_bits_the_range_stays(spec, bits):
    technique, _, _, (site, now) = folded(*planted(offset=3.0), spec)
    four, other = (
        technique.qplug_make_quantizer(site=site, spec=replace(spec, bits=b), stats=now).quantizer for b in (4, bits)
    )
    assert (other.bits, other.signed, other.symmetric) == (bits, four.signed, four.symmetric)
    torch.testing.assert_close(other.scale * other.high, four.scale * four.high)
    ends = [float(-q.zero_point * q.scale) for q in (four, other)]
    assert ends[0] == pytest.approx(ends[1], abs=0.5 * float(max(four.scale, other.scale)) + 1e-6)


def test_a_symmetric_quantizer_gets_scales_alone():
    technique, smoothing, (_, stats), (site, now) = folded(*planted(offset=3.0), SYMMETRIC)
    assert not smoothing.shift.any()
    assert "z̃" not in smoothing.reason
    assert technique.qplug_make_quantizer(site=site, spec=SYMMETRIC, stats=now).quantizer.symmetric
    assert (now.channel_absmax.max() / now.channel_absmax.min()) < 1.5  # measured: 1.02
    assert (stats.channel_absmax.max() / stats.channel_absmax.min()) > 50


def test_sites_left_to_the_next_technique():
    y, weight = planted()
    technique, smoothing, _, (site, now) = folded(y, weight)
    again = now.smoothed(Smoothing(torch.zeros(8), torch.full((8,), 2.0)))
    for other_site, spec, stats in (
        (site, A4, again),  # something smoothed it afterwards
        (replace(site, source="other"), A4, now),
        (replace(site, source=None), A4, now),
    ):
        assert technique.qplug_make_quantizer(site=other_site, spec=spec, stats=stats) is None
    (_, stats), group = after_norm(y, weight)
    for spec in (None, QuantSpec(4, Granularity.PER_CHANNEL, symmetric=False)):
        assert make(Reparameterize).qplug_smooth(group=replace(group, input_spec=spec), stats=stats) is None
    assert make(Reparameterize, match=["*.fc1"]).qplug_smooth(group=group, stats=stats) is None
    assert smoothing is not None


def test_a_channel_that_never_varies_is_shifted_to_zero():
    y, weight = planted()
    y[..., 2] = -0.4
    _, smoothing, _, (_, now) = folded(y, weight)
    assert smoothing.scale[2] == 1.0
    assert now.sample[:, 2].abs().max() < 1e-6
    y[:] = 3.0
    (_, stats), group = after_norm(y, weight)
    assert make(Reparameterize).qplug_smooth(group=group, stats=stats) is None


def test_asymmetric_channels_of_all_sizes_lose_less():
    y, weight = planted(offset=3.0)
    technique, _, (_, stats), (site, now) = folded(y, weight)
    uniform = UniformQuantizer.from_range(stats.min, stats.max, A4)
    plain = float(stats.output_error(uniform.infer(stats.sample), Granularity.PER_TENSOR))
    quantizer = technique.qplug_make_quantizer(site=site, spec=A4, stats=now).quantizer
    ours = float(now.output_error(quantizer.infer(now.sample), Granularity.PER_TENSOR))
    assert ours < 0.1 * plain  # measured: 0.057


def softmax_site():
    """(4, 197, 197) rows of a Softmax, and what reads them."""
    return activation((2 * randn(4, 197, 197)).softmax(-1), randn(16, 197, seed=1), kind=SiteKind.POST_SOFTMAX)


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_log_sqrt2_in_float64(bits):
    site, stats = softmax_site()
    x = stats.sample.double().numpy()

    def log(scale):
        with np.errstate(divide="ignore"):
            code = np.maximum(np.round(-2 * np.log2(x / scale)), 0)
        return np.where(code >= 2**bits - 1, 0.0, scale * 2 ** (-code / 2))

    scales = [np.quantile(x, share) for share in SHARES]
    scale = min(scales, key=lambda s: np.square(log(s) - x).sum())
    quantizer = choose(make(LogSqrt2), (site, stats), QuantSpec(bits)).quantizer
    assert (quantizer.rate, quantizer.bits) == (2, bits)
    assert float(quantizer.scale) == pytest.approx(scale, rel=1e-5)
    assert np.square(quantizer(stats.sample).double().numpy() - x).sum() == pytest.approx(
        np.square(log(scale) - x).sum(), rel=1e-3
    )


def test_log_sqrt2_beats_a_uniform_quantizer_and_its_search_by_output_the_percentiles():
    site, stats = softmax_site()
    errors = [
        float(stats.output_error(quantizer.infer(stats.sample), Granularity.PER_TENSOR))
        for quantizer in (
            choose(make(Percentile), (site, stats), A4).quantizer,
            choose(make(LogSqrt2), (site, stats), A4).quantizer,
            choose(make(LogSqrt2, search="output"), (site, stats), A4).quantizer,
        )
    ]
    assert errors[1] < 0.5 * errors[0]  # measured: 0.27
    assert errors[2] <= errors[1]  # measured: 0.99


def test_log_sqrt2_takes_post_softmax_sites_with_one_scale():
    site, stats = softmax_site()
    assert choose(make(LogSqrt2), (replace(site, kind=SiteKind.POST_GELU), stats), A4) is None
    assert choose(make(LogSqrt2), (site, stats), QuantSpec(4, Granularity.PER_HEAD)) is None
    assert "log √2" in choose(make(LogSqrt2), (site, stats), A4).reason


@pytest.mark.parametrize("bits", [4, 8])
def test_the_percentile_search_in_float64(bits):
    """Each row of a weight, and an activation as a whole."""
    weight = randn(5, 4000) ** 3
    scale = choose(
        make(Percentile), weight_site(weight, randn(6, 4000)), QuantSpec(bits, Granularity.PER_CHANNEL, symmetric=False)
    ).quantizer.scale
    wanted = [best_range(row, bits)[0] for row in weight.double().numpy()]
    np.testing.assert_allclose(scale.flatten(), wanted, rtol=1e-5)
    site, stats = activation(weight.view(1, 5, 4000))
    quantizer = choose(make(Percentile), (site, stats), QuantSpec(bits, symmetric=False)).quantizer
    s, z = best_range(stats.sample.double().numpy().ravel(), bits)
    assert (float(quantizer.scale), float(quantizer.zero_point)) == (pytest.approx(s, rel=1e-5), z)


def test_each_scale_chooses_a_percentile_separately():
    """A row with few far values keeps clear of them at 4 bits; one without has nothing to clip."""
    weight = randn(2, 20000)
    weight[0, :4] = torch.tensor([30.0, -30.0, 30.0, -30.0])
    pair = weight_site(weight, randn(3, 20000))
    scale = choose(make(Percentile), pair, QuantSpec(4, Granularity.PER_CHANNEL)).quantizer.scale.flatten() * 7
    assert scale[0] < 10
    assert scale[1] < 5
    wide = choose(make(Percentile, percentiles=[100.0]), pair, QuantSpec(4, Granularity.PER_CHANNEL)).quantizer
    assert float(wide.scale.max()) * 7 == pytest.approx(30.0)


@pytest.mark.parametrize(("build", "norms"), [(toy_vit, VIT), (toy_deit, VIT), (toy_swin, SWIN)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_function_is_preserved(build, norms, symmetric):
    model = build()
    before = copy.deepcopy(model)
    activations = {"bits": 4, "symmetric": symmetric}
    assert smoothed(model, toy_images(6), make(Reparameterize), activations=activations) == norms
    assert moved(model, before, toy_images(5, seed=9)) < 1e-5  # measured: at most 9e-7
    changed = model.get_submodule(norms[0]).weight - before.get_submodule(norms[0]).weight
    assert changed.norm() > 0.1


@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_the_function_of_the_real_models_is_preserved(shared, name):
    changed, error = smoothed_real(shared, name, make(Reparameterize), activations={"bits": 4, "symmetric": False})
    assert len(changed) == 24
    assert error < 1e-4  # measured: 1.6e-6 (ViT-Ti), 2.1e-6 (DeiT-Ti)


def test_the_three_together_on_a_toy():
    registry = toy_registry(Reparameterize, LogSqrt2, Percentile)
    data = toy_recipe(Percentile, registry=registry).dump()
    data["quantize"]["activations"]["symmetric"] = data["quantize"]["weights"]["symmetric"] = False
    data["techniques"] = [{"use": t.name()} for t in (Reparameterize, LogSqrt2, Percentile)]
    result = run(recipe_type(registry).model_validate(data), out=None, registry=registry)
    by = {decision.site.kind: decision for decision in result.plan.decisions.values()}
    taken = {
        SiteKind.POST_LAYERNORM: ("repq_vit.reparameterize", "uniform uint4 asymmetric"),
        SiteKind.POST_SOFTMAX: ("repq_vit.log_sqrt2", "log √2 uint4"),
        SiteKind.POST_GELU: ("repq_vit.percentile", "uniform uint4 asymmetric"),
        SiteKind.LINEAR_WEIGHT: ("repq_vit.percentile", "uniform uint4 asymmetric ×5"),
    }
    assert {kind: (by[kind].technique, by[kind].quantizer.describe()) for kind in taken} == taken
    assert [change.where for change in result.plan.changes] == VIT
    assert not [warning for warning in result.warnings if not isinstance(warning, Alarm)]  # a toy is at chance
