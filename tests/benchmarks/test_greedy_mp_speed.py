"""Greedy MP on 10,000 sites, in multiples of sorting what it looks at once."""

from __future__ import annotations

import math
import random

import pytest
from plugin_toys import make, uncounted
from qplug_plugins.mptq_vit import GreedyMp
from workbench import ratio

from qplug.core.types import QuantSpec, Site, SiteKind
from qplug.quantization.sqnr_table import SqnrTable

SITES = 10_000


@pytest.mark.slow
def test_10_000_sites_cost_some_sorts(benchmark):
    """A heap of n sites and k reductions is O((n + k)·log n); looking at every site each time would be O(n·k)."""
    draw = random.Random(0)
    sites = [
        Site(f"layer{i}.weight", SiteKind.LINEAR_WEIGHT, f"layer{i}", "weight", (draw.randrange(1, 10**6),))
        for i in range(SITES)
    ]
    offset = {site.name: draw.uniform(-5.0, 5.0) for site in sites}
    technique = make(GreedyMp, weights=4.0, activations=4.0)
    bits = {}

    def allocate() -> None:
        specs = {s.name: QuantSpec(8) for s in sites}
        table = SqnrTable(sites, specs, lambda s, b: 6.0 * b + offset[s.name], {}.__getitem__, uncounted)
        bits.update(technique.qplug_allocate_bits(table=table))

    def sort() -> list[tuple[float, str]]:
        return sorted((-(6.0 * b + offset[s.name]) * math.log(s.numel + 1), s.name) for s in sites for b in range(2, 8))

    multiple = benchmark.pedantic(lambda: ratio(allocate, sort), rounds=1, iterations=1)
    benchmark.extra_info["sorts"] = multiple
    print(f"\ngreedy: {multiple:.2f} sorts")
    assert len(bits) == SITES
    assert sum(bits[s.name] * s.numel for s in sites) / sum(s.numel for s in sites) == pytest.approx(4.0, abs=1e-3)
    assert multiple <= 8.0  # measured: 2.7
