"""The SQNR table: how much of each site survives at each bit width, fitted on demand by the recipe's own ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from qplug.core.types import QuantSpec, Site

if TYPE_CHECKING:
    from qplug.quantization.calibration.statistics import SiteStats


class SqnrTable:
    """What an allocator may ask. It never calls the model: everything comes from the samples of the one calibration.

    Args:
        sites: the sites whose bits may change, in model order.
        specs: the recipe's specification of each, by name.
        measure: (site, bits) → SQNR in dB; called at most once a pair.
        stats: site → its statistics.
        count: (bits by site name, accounting convention) → what the model then costs.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        specs: Mapping[str, QuantSpec],
        measure: Callable[[Site, int], float],
        stats: Callable[[Site], SiteStats],
        count: Callable[[Mapping[str, int], str], dict[str, float]],
    ) -> None:
        self.sites = tuple(sites)
        self.specs = dict(specs)
        self._measure = measure
        self._stats = stats
        self._count = count
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

    def costs(self, bits: Mapping[str, int], accounting: str) -> dict[str, float]:
        """What the whole model costs where these sites have these bits, and all others those of the recipe.

        The same figures as in ``metrics.json``, from the quantizers that the sites would get: ``size_mb`` in MB, and
        ``bops_g`` in 10^9 bit operations of one image, with ``float.size_mb`` and ``float.bops_g``.

        Args:
            bits: by name, of any of ``sites``.
            accounting: the convention's name, ``full``, ``q-mlp`` or ``hawq`` (``qplug.quantization.accounting``).

        Raises:
            InputError: no convention has this name.
        """
        return self._count(bits, accounting)

    def measured(self) -> dict[str, dict[int, float]]:
        """Everything asked so far: site → bits → dB."""
        return {name: dict(sorted(row.items())) for name, row in self._known.items()}
