"""Ranges of the baselines against float64 oracles, and the gain of each over a simpler one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plugin_toys import activation, choose, make, oracle, uncounted, weight_site
from qplug_plugins.baseline import Ema, Hessian, MinMax, Mse, Percentile, UniformBits

from qplug.core.types import Granularity, QuantSpec
from qplug.quantization.quantizers import UniformQuantizer
from qplug.quantization.sqnr_table import SqnrTable
from qplug.testing import toy_calibration

PER_CHANNEL = Granularity.PER_CHANNEL


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outliers(seed: int = 0) -> torch.Tensor:
    """Normal values, of which one in 500 is 20 times as large; (images, tokens, channels)."""
    x = randn(8, 25, 40, seed=seed)
    x.view(-1)[::500] *= 20.0
    return x


def grid(low, high, bits: int, symmetric: bool):
    """Scale, zero point and integer bounds of the grid that just holds [low, high], in float64."""
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    if symmetric and not (low < 0).any():
        return high / (2**bits - 1), 0.0, 0, 2**bits - 1
    if symmetric:
        top = 2 ** (bits - 1)
        return np.maximum(np.abs(low), np.abs(high)) / (top - 1), 0.0, -top, top - 1
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    return scale, np.round(-low / scale), 0, 2**bits - 1


def same_values(quantizer: UniformQuantizer, x: torch.Tensor, expected: np.ndarray) -> None:
    """Equal but for values that lie within float32's rounding of the middle between two steps."""
    got = quantizer(x).double().numpy()
    step = float(quantizer.scale.max())
    wrong = np.abs(got - expected) > 1e-4 * step
    assert wrong.mean() < 1e-3
    assert np.abs(got - expected).max() <= 1.001 * step


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shift", [0.0, 1.0, 9.0])  # both signs, lopsided, positive alone
def test_min_max_holds_every_value(bits, symmetric, shift):
    x = randn(4, 5, 6) + shift
    choice = choose(make(MinMax), activation(x), QuantSpec(bits, symmetric=symmetric))
    same_values(choice.quantizer, x, oracle(x, *grid(x.min(), x.max(), bits, symmetric)))
    assert (choice.quantizer.scale.numel(), choice.quantizer.bits) == (1, bits)


def test_min_max_gives_each_channel_of_a_weight_one_scale():
    weight = randn(6, 8) * torch.logspace(-2, 2, 6).unsqueeze(1)
    choice = choose(make(MinMax), weight_site(weight, randn(9, 8)), QuantSpec(4, PER_CHANNEL))
    expected = oracle(weight, *grid(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), 4, True))
    assert choice.quantizer.scale.shape == (6, 1)
    same_values(choice.quantizer, weight, expected)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_ema_is_the_recursion_over_images(momentum):
    x = randn(7, 5, 6) * torch.arange(1.0, 8.0).view(-1, 1, 1)
    low, high = float(x[0].min()), float(x[0].max())
    for image in x[1:].double():
        low = momentum * low + (1 - momentum) * float(image.min())
        high = momentum * high + (1 - momentum) * float(image.max())
    choice = choose(make(Ema, momentum=momentum), activation(x), QuantSpec(8, symmetric=False))
    scale, zero, *_ = grid(low, high, 8, False)
    assert float(choice.quantizer.scale) == pytest.approx(scale, rel=1e-5)
    assert float(choice.quantizer.zero_point) == zero


@pytest.mark.parametrize("share", [60.0, 99.0, 99.9, 100.0])
def test_percentile_is_the_quantile_of_the_values(share):
    x = randn(8, 25, 40)
    low, high = np.quantile(x.double().numpy(), [1 - share / 100, share / 100])
    choice = choose(make(Percentile, percentile=share), activation(x), QuantSpec(8, symmetric=False))
    scale, zero, *_ = grid(low, high, 8, False)
    assert float(choice.quantizer.scale) == pytest.approx(scale, rel=1e-5)
    assert float(choice.quantizer.zero_point) == zero


@pytest.mark.parametrize("technique", [Ema, Percentile])
def test_moving_averages_and_percentiles_use_min_max_for_weights_and_leave_several_scales(technique):
    weight, spec = randn(6, 8), QuantSpec(4, PER_CHANNEL)
    pair = weight_site(weight, randn(9, 8))
    same = choose(make(MinMax), pair, spec).quantizer.to_dict()
    assert choose(make(technique), pair, spec).quantizer.to_dict() == same
    assert choose(make(technique), activation(randn(4, 5, 6)), spec) is None


def squared_error(x, factor, bits, symmetric) -> float:
    scale, zero, low, high = grid(x.min(), x.max(), bits, symmetric)
    return float(np.square(oracle(x, scale * factor, zero, low, high) - np.asarray(x, dtype=np.float64)).sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_mse_agrees_with_a_dense_search_in_float64(bits, symmetric):
    x = outliers()
    quantizer = choose(make(Mse), activation(x), QuantSpec(bits, symmetric=symmetric)).quantizer
    least = min(squared_error(x, factor, bits, symmetric) for factor in np.geomspace(0.02, 1.2, 600))
    got = float((quantizer(x) - x).double().square().sum())
    assert least * (1 - 1e-6) <= got * (1 + 1e-3)  # the oracle's grid is the same grid
    assert got <= 1.02 * least  # measured: at most 1.004 of the dense search's


def test_mse_searches_every_channel_of_a_weight_separately():
    weight = randn(6, 400) * torch.logspace(-2, 2, 6).unsqueeze(1)
    weight[2, ::100] *= 30.0
    quantizer = choose(make(Mse), weight_site(weight, randn(9, 400)), QuantSpec(4, PER_CHANNEL)).quantizer
    for channel, row in enumerate(weight):
        least = min(squared_error(row, factor, 4, True) for factor in np.geomspace(0.02, 1.2, 600))
        assert float((quantizer(weight)[channel] - row).double().square().sum()) <= 1.02 * least


def output_error(x, weight, importance, factor, bits) -> float:
    """Σ (dL/dO)²·(Ô − O)² in float64 (PTQ4ViT, Eq. 7)."""
    scale, zero, low, high = grid(x.min(), x.max(), bits, True)
    moved = (oracle(x, scale * factor, zero, low, high) - np.asarray(x, dtype=np.float64)) @ weight.double().numpy().T
    return float((np.square(moved) * importance.double().numpy()).sum())


def test_hessian_agrees_with_a_dense_search_in_float64():
    x, weight = outliers(), randn(12, 40, seed=1)
    importance = randn(200, 12, seed=2).square()
    pair = activation(x, weight, importance)
    quantizer = choose(make(Hessian), pair, QuantSpec(4)).quantizer
    rows = x.flatten(0, 1)
    least = min(output_error(rows, weight, importance, factor, 4) for factor in np.geomspace(0.02, 1.2, 600))
    moved = (quantizer(rows) - rows).double() @ weight.double().T
    assert float((moved.square() * importance).sum()) <= 1.03 * least  # measured: 1.002


def test_hessian_of_a_weight_agrees_with_a_dense_search_in_float64_for_each_channel():
    weight, x = randn(5, 40), outliers().flatten(0, 1)
    importance = randn(200, 5, seed=2).square()
    quantizer = choose(make(Hessian), weight_site(weight, x, importance), QuantSpec(3, PER_CHANNEL)).quantizer
    error = (((quantizer(weight) - weight).double() @ x.double().T).square() * importance.T).sum(1)
    for channel, row in enumerate(weight):
        scale, zero, low, high = grid(row.min(), row.max(), 3, True)
        candidates = [
            oracle(row, scale * f, zero, low, high) - row.double().numpy() for f in np.geomspace(0.02, 1.2, 600)
        ]
        moved = np.square(np.stack(candidates) @ x.double().numpy().T) * importance[:, channel].double().numpy()
        assert float(error[channel]) <= 1.05 * moved.sum(1).min()


def test_hessian_declares_gradients_and_works_without_them():
    assert make(Hessian).gradients
    x, weight = outliers(), randn(12, 40, seed=1)
    spec, ones = QuantSpec(4), torch.ones(200, 12)
    alike, none = (choose(make(Hessian), activation(x, weight, i), spec).quantizer for i in (ones, None))
    assert alike.to_dict() == none.to_dict()


def test_mse_beats_min_max_on_outliers():
    x = outliers()
    errors = [
        float((choose(make(t), activation(x), QuantSpec(4)).quantizer(x) - x).square().sum()) for t in (MinMax, Mse)
    ]
    assert errors[1] < 0.6 * errors[0]  # measured: 0.37


def test_hessian_beats_mse_in_the_output():
    """Half of the channels carry the outliers, and no weight that matters reads them."""
    x, weight = randn(8, 25, 40), randn(12, 40, seed=1)
    x[..., 20:] *= 15.0
    weight[:, 20:] *= 0.01
    pair = activation(x, weight, randn(200, 12, seed=2).square())
    quantizers = [choose(make(t), pair, QuantSpec(4)).quantizer for t in (Mse, Hessian)]
    errors = [float(pair[1].output_error(q(pair[1].sample), Granularity.PER_TENSOR)) for q in quantizers]
    assert errors[1] < 0.6 * errors[0]  # measured: 0.15


def test_importance_moves_the_hessian_range_towards_the_outputs_that_matter():
    """One output reads the small channel and one the large; the gradient says which counts."""
    x = torch.cat([randn(4, 50, 1), 30.0 * randn(4, 50, 1, seed=1)], dim=-1)
    weight = torch.eye(2)
    scales = []
    for counts in ([1.0, 0.0], [0.0, 1.0]):
        pair = activation(x, weight, torch.tensor(counts).expand(200, 2))
        scales.append(float(choose(make(Hessian), pair, QuantSpec(4)).quantizer.scale))
    assert scales[0] < 0.3 * scales[1]


def test_uniform_bits_gives_every_site_its_role_s_bits():
    sites = [site for site, _ in toy_calibration()]

    def measure(site, bits):
        raise AssertionError("uniform bits need no measurement")

    table = SqnrTable(sites, {site.name: QuantSpec(8) for site in sites}, measure, {}.__getitem__, uncounted)
    bits = make(UniformBits, weights=3, activations=5).qplug_allocate_bits(table=table)
    assert bits == {site.name: 3 if site.kind.is_weight else 5 for site in sites}
