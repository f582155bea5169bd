"""The SQNR table: the SQNR of each site at each bit width, measured on demand with the recipe's quantizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from qplug.core.types import QuantSpec, Site

if TYPE_CHECKING:
    from qplug.quantization.calibration.statistics import SiteStats


class SqnrTable:
    """Measurements for bit allocators. It never calls the model: all values come from the samples of calibration.

    Args:
        sites: the sites whose bits may change, in model order.
        specs: site name → the recipe's specification.
        measure: (site, bits) → SQNR in dB; called at most once per pair.
        stats: site → its statistics.
        count: (bits by site name, accounting convention) → costs of the model.
        advance: called with the number of sites that were measured at any bits, and a note.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        specs: Mapping[str, QuantSpec],
        measure: Callable[[Site, int], float],
        stats: Callable[[Site], SiteStats],
        count: Callable[[Mapping[str, int], str], dict[str, float]],
        advance: Callable[[int, str], None] = lambda done, note: None,
    ) -> None:
        self.sites = tuple(sites)
        self.specs = dict(specs)
        self._measure = measure
        self._stats = stats
        self._count, self._advance = count, advance
        self._measured: dict[str, dict[int, float]] = {}
        self._pairs = 0

    @property
    def weights(self) -> list[Site]:
        """The weights among ``sites``."""
        return [site for site in self.sites if site.kind.is_weight]

    @property
    def activations(self) -> list[Site]:
        """The activations among ``sites``."""
        return [site for site in self.sites if not site.kind.is_weight]

    def sqnr_db(self, site: Site, bits: int) -> float:
        """10·log10(Σx²/Σ(x − x̂)²) of ``site`` at ``bits`` bits (MPTQ-ViT, Eq. 9), on values of the float model."""
        row = self._measured.setdefault(site.name, {})
        if bits not in row:
            row[bits] = self._measure(site, bits)
            self._pairs += 1
            self._advance(len(self._measured), f"{self._pairs} pairs of site and bits")
        return row[bits]

    def stats(self, site: Site) -> SiteStats:
        """The statistics of ``site``, for an allocator's own measures."""
        return self._stats(site)

    def costs(self, bits: Mapping[str, int], accounting: str) -> dict[str, float]:
        """Costs of the whole model with these bits; other sites have the recipe's bits.

        The figures are the same as in ``metrics.json``, computed from the quantizers of the sites at these bits:
        ``size_mb`` in MB and ``bops_g`` in 10^9 bit operations per image, with ``float.size_mb`` and ``float.bops_g``.

        Args:
            bits: site name → bits, for any of ``sites``.
            accounting: the convention's name, ``full``, ``q-mlp`` or ``hawq`` (``qplug.quantization.accounting``).

        Raises:
            InputError: no convention has this name.
        """
        return self._count(bits, accounting)

    def measured(self) -> dict[str, dict[int, float]]:
        """All values measured so far: site → bits → dB."""
        return {name: dict(sorted(row.items())) for name, row in self._measured.items()}
