"""O-2SF: groups of channels with one scale each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from plugin_toys import activation, choose, make
from qplug_plugins.baseline import Hessian
from qplug_plugins.tsptq_vit.o_2sf import O2sf

from qplug.core.types import Granularity, QuantSpec, SiteKind


def outliers():
    """(8, 16, 24): four groups of channels, of magnitudes 0.1, 0.5, 3 and 20."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([0.1, 0.5, 3.0, 20.0]).repeat(6)
    return torch.randn(8, 16, 24, generator=generator) * size, torch.randn(12, 24, generator=generator)


def layernorm_site(x, weight):
    site, stats = activation(x, weight, kind=SiteKind.POST_LAYERNORM)
    site = replace(site, source="norm")
    stats.site = site
    return site, stats


def test_channels_of_a_magnitude_share_a_scale():
    choice = choose(make(O2sf), layernorm_site(*outliers()), QuantSpec(4))
    scale = choice.quantizer.scale.view(6, 4)
    assert choice.quantizer.scale.unique().numel() == 4
    assert torch.equal(scale, scale[:1].expand(6, 4))
    assert bool((scale[0].diff() > 0).all())
    assert choice.reason == "4 groups of channels"


@pytest.mark.parametrize("bits", [4, 6])
def test_more_groups_lose_less_and_one_group_is_the_uniform_quantizer(bits):
    pair = layernorm_site(*outliers())
    errors = []
    for technique in (make(Hessian), make(O2sf, groups=1), make(O2sf, groups=2), make(O2sf, groups=4)):
        choice = choose(technique, pair, QuantSpec(bits))
        errors.append(float(pair[1].output_error(choice.quantizer(pair[1].sample), Granularity.PER_TENSOR)))
    assert errors[1] == pytest.approx(errors[0], rel=0.1)
    assert errors[3] < errors[2] < errors[1]
    assert errors[3] < 0.7 * errors[1]  # measured: 0.55 of it at 4 bits, 0.43 at 6


def test_sites_left_to_the_next_technique():
    x, weight = outliers()
    site, stats = layernorm_site(x, weight)
    assert choose(make(O2sf), (replace(site, kind=SiteKind.LINEAR_INPUT), stats), QuantSpec(4)) is None
    assert choose(make(O2sf), (replace(site, source=None), stats), QuantSpec(4)) is None  # channels moved
    assert choose(make(O2sf), (site, stats), QuantSpec(4, Granularity.PER_CHANNEL)) is None


def test_fewer_kinds_of_channels_than_groups():
    choice = choose(make(O2sf, groups=8), layernorm_site(torch.ones(2, 3, 5), torch.ones(4, 5)), QuantSpec(4))
    assert choice.reason == "1 groups of channels"
