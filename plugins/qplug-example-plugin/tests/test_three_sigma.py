"""The contract that qplug checks every technique by, and the numbers of this one."""

import pytest
import torch
from qplug_example_plugin import ThreeSigma

from qplug import Granularity, QuantSpec, Site, SiteKind, SiteStats
from qplug.testing import TechniqueContract


class TestContract(TechniqueContract):
    technique = ThreeSigma
    configs = ({}, {"k": 1.5})


def quantizer(x, spec, site=None, k=3.0):
    stats = SiteStats.from_tensor(x, site)
    technique = ThreeSigma(ThreeSigma.Config(k=k))
    return technique.qplug_make_quantizer(site=stats.site, spec=spec, stats=stats).quantizer


def test_an_outlier_does_not_stretch_the_range():
    x = torch.randn(8, 64, 16, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0] = 1000.0
    scale = quantizer(x, QuantSpec(bits=8)).scale
    assert float(scale) == pytest.approx(float(x.mean() + 3 * x.std(correction=0)) / 127, rel=1e-5)
    assert scale < 1000.0 / 127 / 10


def test_the_range_ends_where_the_values_do():
    x = torch.linspace(-1.0, 1.0, 64).reshape(1, 8, 8)
    assert float(quantizer(x, QuantSpec(bits=4), k=50.0).scale) == pytest.approx(1.0 / 7)


def test_one_range_a_channel():
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 7.0)[:, None]
    site = Site("fc.weight", SiteKind.LINEAR_WEIGHT, "fc", "weight", (6, 5), channel_axis=0)
    scale = quantizer(weight, QuantSpec(bits=4, granularity=Granularity.PER_CHANNEL), site, k=1.0).scale
    expected = (weight.mean(1).abs() + weight.std(1, correction=0)).minimum(weight.abs().amax(1)) / 7
    assert scale.shape == (6, 1)
    assert torch.allclose(scale.flatten(), expected)
