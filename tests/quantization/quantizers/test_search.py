"""The line search finds the factor of an exhaustive search."""

import numpy as np
import pytest
import torch

from qplug import Granularity, Quantizer, QuantSpec, SiteKind, SiteStats, UniformQuantizer, line_search
from qplug.core.types import Site

PER_TENSOR, PER_CHANNEL = Granularity.PER_TENSOR, Granularity.PER_CHANNEL


def weight(rows=5, columns=300, seed=0):
    """Normal rows with one outlier each, at very different magnitudes."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    x[:, 0] = torch.arange(1, rows + 1) * 4.0
    x *= 10.0 ** torch.arange(rows).view(-1, 1)
    return SiteStats.from_tensor(
        x, Site("w.weight", SiteKind.LINEAR_WEIGHT, "w", "weight", tuple(x.shape), channel_axis=0)
    )


class Times(Quantizer):
    """Multiplies its input, so that the best factor is known."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def infer(self, x):
        return x * self.factor


def dense_best(stats, base, factors, granularity=PER_TENSOR):
    errors = torch.stack([stats.value_error(base.scaled(float(f)).infer(stats.sample), granularity) for f in factors])
    return errors.min(0).values


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_each_channel_is_close_to_the_brute_force_optimum(seed, bits):
    stats = weight(seed=seed)
    base = UniformQuantizer.from_range(*stats.range(PER_CHANNEL), QuantSpec(bits))
    factor, error = line_search(
        stats,
        base.scaled,
        granularity=PER_CHANNEL,
        objective="value",
        candidates=60,
        refine=16,
    )
    assert factor.shape == error.shape == (5, 1)
    assert torch.allclose(error, stats.value_error(base.scaled(factor).infer(stats.sample), PER_CHANNEL))
    best = dense_best(stats, base, np.geomspace(0.02, 1.2, 2000), PER_CHANNEL)
    assert (error <= best * 1.02).all()
    worst = stats.value_error(base.infer(stats.sample), PER_CHANNEL)
    if bits < 6:
        assert (error < 0.8 * worst).sum() >= 3  # the outlier is worth clipping, or this test shows nothing


def test_channels_are_searched_independently():
    stats = weight()
    base = UniformQuantizer.from_range(*stats.range(PER_CHANNEL), QuantSpec(4))
    together, _ = line_search(stats, base.scaled, granularity=PER_CHANNEL, objective="value")
    for row, factor in zip(stats.sample, together.flatten(), strict=True):
        one = SiteStats.from_tensor(row.view(1, -1), Site("w.weight", SiteKind.LINEAR_WEIGHT, "w", "weight", (1, 300)))
        alone = UniformQuantizer.from_range(one.min, one.max, QuantSpec(4))
        expected, _ = line_search(one, alone.scaled, objective="value")
        assert float(factor) == pytest.approx(float(expected))
    assert len(together.unique()) > 1


def test_a_known_optimum_is_found_within_the_resolution():
    stats = weight(1)
    for target in (0.021, 0.3, 0.77, 1.19):
        factor, _ = line_search(
            stats, lambda f, t=target: Times(1 + (f / t).log()), objective="value", candidates=40, refine=40
        )
        assert abs(float(factor.log()) - float(torch.tensor(target).log())) < np.log(60) / 39 / 40 * 2


@pytest.mark.parametrize("target", [1e-3, 50.0])
def test_the_factor_stays_within_its_bounds(target):
    stats = weight(1)
    factor, _ = line_search(
        stats, lambda f: Times(1 + (f / target).log()), objective="value", low=0.5, high=1.5, candidates=5
    )
    assert 0.5 * (1 - 1e-6) <= float(factor) <= 1.5 * (1 + 1e-6)


def test_one_scale_is_searched_by_the_sum_of_the_errors():
    stats = weight()
    base = UniformQuantizer.from_range(stats.min, stats.max, QuantSpec(4))
    factor, error = line_search(stats, base.scaled, objective="value", candidates=60)
    assert factor.shape == ()
    assert float(error) <= float(dense_best(stats, base, np.geomspace(0.02, 1.2, 2000))) * 1.02


def test_one_candidate_is_the_upper_bound():
    stats = weight(1)
    factor, _ = line_search(stats, Times, objective="value", high=1.0, candidates=1, refine=0)
    assert float(factor) == 1.0
