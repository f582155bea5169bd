"""The table tells how many sites have been measured, so that the longest stage shows its progress."""

from __future__ import annotations

from typing import Any

from qplug.core.types import Site, SiteKind
from qplug.quantization.sqnr_table import SqnrTable


def test_progress_counts_sites_and_names_pairs() -> None:
    sites = [Site(f"{name}.weight", SiteKind.LINEAR_WEIGHT, name, "weight", (2, 2), 4) for name in "ab"]
    told: list[tuple[int, str]] = []
    unused: Any = None
    table = SqnrTable(sites, {}, lambda site, bits: float(bits), unused, unused, lambda *words: told.append(words))
    for site, bits in ((0, 8), (1, 8), (0, 7), (0, 8)):
        table.sqnr_db(sites[site], bits)
    assert told == [(1, "1 pairs of site and bits"), (2, "2 pairs of site and bits"), (2, "3 pairs of site and bits")]
