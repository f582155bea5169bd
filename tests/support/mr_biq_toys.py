"""Weights and what ``mr_biq.binary_coding`` makes of them, for the tests of Mr.BiQ."""

from __future__ import annotations

import torch
from plugin_toys import choose, make
from qplug_plugins.mr_biq import BinaryCoding

from qplug import Granularity, QuantSpec, Site, SiteKind, SiteStats

C = Granularity.PER_CHANNEL


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heavy(*shape, seed=0):
    """Values whose tails are those of a cubed normal distribution."""
    return randn(*shape, seed=seed) ** 3


def coded(weight, bits=3, **parameters):
    """What the technique makes of a weight."""
    site = Site("layer.weight", SiteKind.CONV_WEIGHT, "layer", "weight", tuple(weight.shape), channel_axis=0)
    return choose(make(BinaryCoding, **parameters), (site, SiteStats.from_tensor(weight, site)), QuantSpec(bits, C))
