"""The SQNR table: how much of each site survives at each bit width, fitted on demand by the recipe's own ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from qplug.types import QuantSpec, Site

if TYPE_CHECKING:
    from qplug.stats import SiteStats


class SqnrTable:
    """What an allocator may ask. It never calls the model: everything comes from the samples of the one calibration.

    Args:
        sites: the sites whose bits may change, in model order.
        specs: the recipe's specification of each, by name.
        measure: (site, bits) → SQNR in dB; called at most once a pair.
        stats: site → its statistics.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        specs: Mapping[str, QuantSpec],
        measure: Callable[[Site, int], float],
        stats: Callable[[Site], SiteStats],
    ) -> None:
        self.sites = tuple(sites)
        self.specs = dict(specs)
        self._measure = measure
        self._stats = stats
        self._known: dict[str, dict[int, float]] = {}

    @property
    def weights(self) -> list[Site]:
        """Those of ``sites`` that are weights."""
        return [site for site in self.sites if site.kind.is_weight]

    @property
    def activations(self) -> list[Site]:
        """Those of ``sites`` that are activations."""
        return [site for site in self.sites if not site.kind.is_weight]

    def sqnr_db(self, site: Site, bits: int) -> float:
        """10·log10(Σx²/Σ(x − x̂)²) of ``site`` at ``bits`` bits (MPTQ-ViT, Eq. 9), on the float model's own values."""
        row = self._known.setdefault(site.name, {})
        if bits not in row:
            row[bits] = self._measure(site, bits)
        return row[bits]

    def stats(self, site: Site) -> SiteStats:
        """The statistics of ``site``, for measures of an allocator's own."""
        return self._stats(site)

    def measured(self) -> dict[str, dict[int, float]]:
        """Everything asked so far: site → bits → dB."""
        return {name: dict(sorted(row.items())) for name, row in self._known.items()}
