"""OPT-m: section 4.3's numbers, both splits, the minima of the searches, and the fallback to uniform."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from plugin_toys import REAL, activation, choose, gelu_data, make, real_calibration
from qplug_plugins.baseline import Hessian
from qplug_plugins.mptq_vit import OptM
from qplug_plugins.mptq_vit.opt_m import regions

from qplug.core.types import Granularity, QuantSpec, SiteKind
from qplug.quantization.quantizers import RegionQuantizer, UniformQuantizer

POST_GELU = SiteKind.POST_GELU
S0 = 1.6494 / 2**5
"""The s0 that section 4.3 rounds to 0.0515: it prints s2 = 1.6494 = s0·2^5."""


def levels(quantizer: RegionQuantizer) -> torch.Tensor:
    """Every value that any base integer maps to."""
    low, high = quantizer.least - 8, quantizer.most + 8
    return quantizer(torch.arange(low, high + 1, dtype=torch.float32) * quantizer.step).unique()


def used_codes(quantizer: RegionQuantizer, region: int) -> int:
    """How many codes of a region some value is stored as."""
    first = quantizer.regions[region]
    last = quantizer.regions[region + 1].start - 1 if region + 1 < len(quantizer.regions) else quantizer.most
    codes, _ = quantizer.codes(torch.arange(max(first.start, quantizer.least), last + 1, dtype=torch.float32))
    return len(codes.unique())


def test_the_figures_of_section_4_3():
    """DeiT-S, 9th block, 4 bits: s0 ≈ 0.0515, m0 = 3, m1 = 5 → s1 ≈ 0.4124, s2 ≈ 1.6494, largest value 11.5458."""
    quantizer = regions(S0, 3, 5, 4, "consistent")
    assert float(quantizer.step) == pytest.approx(0.0515, abs=5e-5)
    assert pytest.approx(0.4124, abs=1e-4) == S0 * 2**3
    values = quantizer(torch.linspace(-0.17, 12.4909, 400_001)).unique()
    assert (values <= 0).sum() == 4  # "OPT-m exhibits 4 bins": −3, −2, −1 and 0 times s0
    torch.testing.assert_close(values[:4], torch.tensor([-3.0, -2.0, -1.0, 0.0]) * S0)
    small = values[(values > 0) & (values < 1.6)]
    torch.testing.assert_close(small, torch.tensor([1.0, 2.0, 3.0]) * S0 * 8)
    large = values[values > 1.6]
    torch.testing.assert_close(large, torch.arange(1.0, 8.0) * 1.6494)
    assert float(values.max()) == pytest.approx(11.5458, abs=1e-4)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("m0", [0, 2, 3])
def test_the_printed_split_leaves_half_of_region_2_unused(bits, m0):
    quarter = 1 << (bits - 2)
    assert used_codes(regions(1.0, m0, m0 + 2, bits, "consistent"), 1) == quarter
    # below 2^(m0+b−3) there are 2^(b−3) codes, and the last values round up to one more
    carried = 1 if m0 else 0
    assert used_codes(regions(1.0, m0, m0 + 2, bits, "paper"), 1) == max(1, quarter // 2 + carried)


def test_the_splits_lie_where_they_are_said_to():
    assert [r.start for r in regions(1.0, 3, 5, 6, "paper").regions][1:] == [0, 2 ** (3 + 3)]  # as printed, at 6 bits
    assert [r.start for r in regions(1.0, 3, 5, 6, "consistent").regions][1:] == [0, 2 ** (3 + 4)]


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_codes_fit_the_slices_of_section_3_2(bits):
    """Region and sign take two bits in regions 1 and 2 and one in region 3."""
    quantizer = regions(1.0, 2, 4, bits, "consistent")
    codes, shift = quantizer.codes(torch.arange(-(2 ** (bits - 2)) * 2, 2 ** (bits + 4), dtype=torch.float32))
    assert codes.abs()[shift < 4].max() == 2 ** (bits - 2) - 1
    assert codes[shift == 4].max() == 2 ** (bits - 1) - 1
    assert len(levels(quantizer)) <= 2**bits


def oracle(x: np.ndarray, s0: float, m0: int, m1: int, bits: int, split: str) -> np.ndarray:
    """Section 3.2 in Python integers: quantize to b + m1 bits, keep a slice, round, saturate."""
    out = []
    small, large = 2 ** (bits - 2) - 1, 2 ** (bits - 1) - 1
    bound = 2 ** (m0 + bits - (2 if split == "consistent" else 3))
    for q in np.clip(np.round(x / s0), -(2 ** (bits + m1 - 1)), 2 ** (bits + m1 - 1) - 1).astype(int).tolist():
        if q < 0:
            out.append(max(q, -small) * s0)
            continue
        shift, most = (m0, small) if q < bound else (m1, large)
        rounded = (q >> shift) + ((q >> (shift - 1)) & 1 if shift else 0)
        out.append(min(rounded, most) * 2**shift * s0)
    return np.array(out)


@pytest.mark.parametrize("split", ["consistent", "paper"])
@pytest.mark.parametrize(("bits", "m0", "m1"), [(3, 0, 1), (4, 3, 5), (4, 0, 6), (6, 2, 4), (8, 1, 2)])
def test_slices_of_bits_in_python_integers(bits, m0, m1, split):
    step = 2.0**-6  # exact, so that no rounding is in doubt
    top = (2 ** (bits - 1) - 1) * 2**m1
    q = np.arange(-3 * 2**bits, min(top + 3 * 2**m1, 20_000))
    quantizer = regions(step, m0, m1, bits, split)
    for fraction in (-0.4, 0.0, 0.4):
        x = (q + fraction) * step
        got = quantizer(torch.tensor(x, dtype=torch.float32)).double().numpy()
        np.testing.assert_array_equal(got, oracle(x, step, m0, m1, bits, split))


def test_a_carry_out_of_a_slice_saturates():
    quantizer = regions(1.0, 3, 5, 4, "consistent")
    assert quantizer(torch.tensor([31.0])).item() == 3 * 8  # (31 + 4) >> 3 = 4 does not fit two bits
    assert quantizer(torch.tensor([32.0])).item() == 32
    assert quantizer(torch.tensor([7 * 32 + 16.0, 1e6])).tolist() == [7 * 32, 7 * 32]
    assert quantizer(torch.tensor([-3.0, -4.0, -1e6])).tolist() == [-3.0, -3.0, -3.0]


def parsed(choice) -> tuple[float, int, int]:
    """(s0, m0, m1) of a choice."""
    assert isinstance(choice.quantizer, RegionQuantizer), choice.reason
    _, second, third = choice.quantizer.regions
    return float(choice.quantizer.step), second.shift, third.shift


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("spread", [1.0, 2.5, 6.0])
def test_m1_is_equation_7(bits, spread):
    x = gelu_data(spread=spread)
    x_low = -float(x.flatten(1).amin(1).double().mean())
    x_up = float(np.quantile(x.double().numpy(), 0.9995))
    exact = math.log2((x_up / (2 ** (bits - 1) - 1)) / (x_low / (2 ** (bits - 2) - 1)))
    assert abs(exact - round(exact)) < 0.49  # else the test would hang on rounding
    _, m0, m1 = parsed(choose(make(OptM, fallback=False, x_up="paper"), activation(x, kind=POST_GELU), QuantSpec(bits)))
    assert m1 == round(exact)
    assert 0 <= m0 < m1


def error(stats, s0: float, m0: int, m1: int, bits: int, split: str, importance) -> float:
    """Σ (dL/dO)²·(Ô − O)² in float64."""
    rows = stats.sample.double().numpy()
    delta = oracle(rows.ravel(), float(np.float32(s0)), m0, m1, bits, split).reshape(rows.shape) - rows
    return float((np.square(delta @ stats.product.rhs[0].double().numpy().T) * importance.double().numpy()).sum())


@pytest.mark.parametrize("split", ["consistent", "paper"])
def test_m0_and_then_s0_minimize_the_hessian_guided_metric(split):
    x = gelu_data(images=2, tokens=8)
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    importance = torch.randn(16, 5, generator=torch.Generator().manual_seed(2)).square()
    pair = activation(x, weight, importance, POST_GELU)
    s0, m0, m1 = parsed(choose(make(OptM, split=split, fallback=False), pair, QuantSpec(4)))
    start = -float(x.flatten(1).amin(1).mean()) / 3
    by_m0 = [error(pair[1], start, m, m1, 4, split, importance) for m in range(m1)]
    assert by_m0[m0] <= min(by_m0) * 1.01  # Eq. 8, at Eq. 7's s0
    assert m1 >= 3
    by_s0 = [error(pair[1], s, m0, m1, 4, split, importance) for s in np.linspace(0.5, 1.5, 100) * start]
    assert error(pair[1], s0, m0, m1, 4, split, importance) <= min(*by_s0, by_m0[m0]) * 1.01


def test_the_printed_grid_divides_1_2_times_the_largest_value():
    x = gelu_data()
    s0, *_ = parsed(choose(make(OptM, s0_grid="paper", fallback=False), activation(x, kind=POST_GELU), QuantSpec(4)))
    place = s0 / (1.2 * float(x.abs().max()) / 2**3) * 100
    assert place == pytest.approx(round(place), abs=1e-3)
    assert 1 <= round(place) <= 100
    around, *_ = parsed(choose(make(OptM, fallback=False), activation(x, kind=POST_GELU), QuantSpec(4)))
    start = -float(x.flatten(1).amin(1).mean()) / 3
    assert 0.5 * start * 0.999 <= around <= 1.5 * start * 1.001


def test_the_grid_around_equation_7_is_the_better_one():
    """The printed one scales with the positive maximum, though s0 scales the negative side."""
    pair = activation(
        gelu_data(spread=6.0), torch.randn(12, 32, generator=torch.Generator().manual_seed(1)), kind=POST_GELU
    )
    errors = []
    for grid in ("eq7", "paper"):
        quantizer = choose(make(OptM, s0_grid=grid, fallback=False), pair, QuantSpec(4)).quantizer
        errors.append(float(pair[1].output_error(quantizer(pair[1].sample), Granularity.PER_TENSOR)))
    assert errors[0] <= errors[1]


@pytest.mark.parametrize(
    ("x", "bits", "says"),
    [
        (gelu_data(), 2, "needs 3 bits"),
        (torch.randn(4, 10, 8).clamp(-0.5, 0.5), 4, "m1 = "),
        (gelu_data().clamp_min(0.0), 4, "no negative"),
        (gelu_data().clamp_max(0.0), 4, "no positive"),
    ],
)
def test_without_room_for_regions_it_is_uniform_and_says_so(x, bits, says):
    choice = choose(make(OptM), activation(x, kind=POST_GELU), QuantSpec(bits))
    assert isinstance(choice.quantizer, UniformQuantizer)
    assert choice.quantizer.bits == bits
    assert says in choice.reason
    assert "uniform" in choice.reason


def test_the_fallback_is_taken_where_the_uniform_quantizer_loses_less_and_says_so():
    """At 8 bits, what x_up clips weighs more than finer steps gain; see the next test."""
    weight = torch.randn(12, 32, generator=torch.Generator().manual_seed(1))
    pair = activation(gelu_data(spread=1.0), weight, kind=POST_GELU)
    strict, free = (choose(make(OptM, fallback=f, x_up="paper"), pair, QuantSpec(8)) for f in (False, True))
    assert isinstance(strict.quantizer, RegionQuantizer)
    assert isinstance(free.quantizer, UniformQuantizer)
    assert "has a larger error than uniform" in free.reason
    errors = [float(pair[1].output_error(c.quantizer(pair[1].sample), Granularity.PER_TENSOR)) for c in (strict, free)]
    assert errors[1] < 0.5 * errors[0]  # measured: 0.41


@pytest.mark.parametrize(("bits", "fallback"), [(3, False), (4, False), (6, False), (6, True), (8, True)])
@pytest.mark.parametrize("spread", [1.0, 2.5, 6.0])
def test_on_gelu_data_it_loses_less_in_the_output_than_the_uniform_quantizer(bits, spread, fallback):
    weight = torch.randn(12, 32, generator=torch.Generator().manual_seed(1))
    pair = activation(gelu_data(spread=spread), weight, kind=POST_GELU)
    uniform, ours = (choose(t, pair, QuantSpec(bits)) for t in (make(Hessian), make(OptM, fallback=fallback)))
    errors = [float(pair[1].output_error(c.quantizer(pair[1].sample), Granularity.PER_TENSOR)) for c in (uniform, ours)]
    assert errors[1] <= errors[0]


def test_it_takes_post_gelu_sites_with_one_scale_alone():
    assert choose(make(OptM), activation(gelu_data()), QuantSpec(4)) is None
    assert choose(make(OptM), activation(gelu_data(), kind=POST_GELU), QuantSpec(4, Granularity.PER_CHANNEL)) is None


@pytest.mark.real
@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("name", REAL)
def test_on_the_real_models_it_never_loses_more_than_the_uniform_quantizer(shared, name, bits, capsys):
    """Output error of fc2, Hessian-guided, as a share of the uniform quantizer's, by block.

    Measured with cross-entropy's gradient:
    ViT-Ti, 4 bits: 0.10 0.18 0.30 0.31 0.32 0.28 0.30 0.29 0.13 0.12 0.10 0.06
    ViT-Ti, 6 bits: 0.11 0.18 0.20 0.11 0.28 0.09 0.20 0.75 0.09 0.08 0.48 0.06
    DeiT-Ti, 4 bits: 0.10 0.29 0.36 0.28 0.32 0.23 0.21 0.22 0.16 0.12 0.17 0.60
    DeiT-Ti, 6 bits: 0.09 0.18 0.31 0.17 0.22 0.08 0.11 0.06 0.10 0.29 0.04 0.03
    """
    _, site_map, calibration, _ = real_calibration(shared, name)
    sites = [site for site in site_map.sites if site.kind is POST_GELU]
    assert len(sites) == 12
    ratios = []
    for site in sites:
        pair = site, calibration.stats(site)
        uniform, ours = (choose(t, pair, QuantSpec(bits)) for t in (make(Hessian), make(OptM)))
        errors = [
            float(pair[1].output_error(c.quantizer(pair[1].sample), Granularity.PER_TENSOR)) for c in (uniform, ours)
        ]
        ratios.append(errors[1] / errors[0])
    with capsys.disabled():
        print(f"\n{name}, {bits} bits: {' '.join(f'{ratio:.2f}' for ratio in ratios)}")
    assert max(ratios) <= 1.0


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_trying_the_maximum_too_never_loses_more_and_wins_where_activations_are_massive(bits):
    x = gelu_data(spread=1.0)
    x[0, 0, 0] = 60.0  # as in ViT-Ti: far above the 99.95 % percentile, and a large share of the output
    pair = activation(x, torch.randn(12, 32, generator=torch.Generator().manual_seed(1)), kind=POST_GELU)
    both, printed = (
        choose(make(OptM, fallback=False, x_up=rule), pair, QuantSpec(bits)) for rule in ("search", "paper")
    )
    wide, narrow = (
        float(pair[1].output_error(c.quantizer(pair[1].sample), Granularity.PER_TENSOR)) for c in (both, printed)
    )
    assert wide < 0.5 * narrow
