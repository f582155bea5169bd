"""Liu et al.'s allocation: modules share their bits, and the least Omega within the average is chosen."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from plugin_toys import make, uncounted
from pydantic import ValidationError
from qplug_plugins.liu2021 import Pareto
from qplug_plugins.liu2021.pareto import module_of, nuclear_norm

from qplug import QuantSpec, Site, SiteKind, SiteStats, SqnrTable

NAMES = ("blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "blocks.1.attn.qkv", "head")


def table():
    """Weights of two attentions, an MLP and a head; SQNR of 6 dB a bit, less for some."""
    sites, known, lost = [], {}, {}
    for i, name in enumerate(NAMES):
        weight = torch.randn(8 + 4 * i, 16, generator=torch.Generator().manual_seed(i)) * (1 + i)
        site = Site(f"{name}.weight", SiteKind.LINEAR_WEIGHT, name, "weight", tuple(weight.shape), channel_axis=0)
        sites.append(site)
        known[site], lost[site.name] = SiteStats.from_tensor(weight, site), 2.0 * (i % 3)
    specs = {site.name: QuantSpec(8) for site in sites}
    return SqnrTable(sites, specs, lambda s, b: 6.0 * b - lost[s.name], known.__getitem__, uncounted)


def test_modules():
    site = lambda module: Site(f"{module}.weight", SiteKind.LINEAR_WEIGHT, module, "weight", (1,))  # noqa: E731
    assert [module_of(site(name)) for name in NAMES] == [
        *("blocks.0.attn", "blocks.0.attn", "blocks.0.mlp", "blocks.0.mlp", "blocks.1.attn", "head"),
    ]
    assert module_of(site("layers.1.downsample.reduction")) == "layers.1.downsample.reduction"
    assert module_of(site("blocks.0.norm1")) == "blocks.0.norm1"


def test_nuclear_norms_against_numpy():
    of = table()
    for site in of.sites:
        want = np.linalg.svd(of.stats(site).sample.double().numpy(), compute_uv=False).sum()
        assert nuclear_norm(of, site) == pytest.approx(want)


@pytest.mark.parametrize("target", [4.0, 5.0, 5.7, 8.0])
def test_the_least_omega_within_the_average_by_brute_force(target):
    of = table()
    bits = make(Pareto, weights=target, activations=8.0, candidates=[4, 6, 8]).qplug_allocate_bits(table=of)
    groups: dict[str, list[Site]] = {}
    for site in of.sites:
        groups.setdefault(module_of(site), []).append(site)

    def omega(site, b):
        power = float(of.stats(site).sample.double().square().sum())
        return nuclear_norm(of, site) * power * 10 ** (-of.sqnr_db(site, b) / 10)

    def total(choice):
        return sum(omega(site, b) for members, b in zip(groups.values(), choice, strict=True) for site in members)

    def mean(choice):
        sizes = [sum(site.numel for site in members) for members in groups.values()]
        return sum(n * b for n, b in zip(sizes, choice, strict=True)) / sum(sizes)

    best = min((c for c in itertools.product((4, 6, 8), repeat=len(groups)) if mean(c) <= target + 1e-9), key=total)
    assert [bits[members[0].name] for members in groups.values()] == list(best)
    for members in groups.values():
        assert len({bits[site.name] for site in members}) == 1


@pytest.mark.parametrize("wrong", [{"weights": 3.0}, {"candidates": [1, 4]}, {"candidates": []}])
def test_what_cannot_be_reached_is_refused(wrong):
    with pytest.raises(ValidationError):
        Pareto.Config(**{"weights": 6.0, "activations": 6.0, **wrong})
