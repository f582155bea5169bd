"""The result of the parity check: how far each place of a file differs from the simulation."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import comb, inf, log10
from typing import Any

from qplug.export.parity.differences import OutputDifference
from qplug.export.parity.fused import FUSED

FREE_RUN, TOP1 = "free run", "top-1"
"""Roles of the logits in ``Parity.first_wrong``, if both sides ran on their own."""
SMALLEST_TOP1_PROBABILITY = 1e-3
"""A top-1 agreement is refused if rounding noise alone costs as many images with a smaller probability."""


@dataclass
class Parity:
    """The comparison of a file with the simulation.

    Attributes:
        places: (operation, ``input`` | ``lhs`` | ``rhs`` | ``output``) → its difference, in the order of the model.
            The last place is that of the logits, with the operation "".
        fused: operation → difference of its output if the runtime returns few outputs; "" stands for the logits.
        free: difference of the logits if both sides run on their own.
        rounding_noise: change of the simulation's own logits under rounding noise, relative to their norm.
        images: number of compared images.
        batches: batch sizes that were run.
        agreeing: images with the simulation's top-1.
        steady: images whose top-1 rounding noise does not change in the simulation.
        joined: planned operations that have no call in the file. They are compared in the operation that reads them.
    """

    places: dict[tuple[str, str], OutputDifference] = field(default_factory=dict)
    fused: dict[str, OutputDifference] = field(default_factory=dict)
    free: OutputDifference = field(default_factory=lambda: OutputDifference(inf, share=1.0))
    rounding_noise: float = 0.0
    images: int = 0
    batches: list[int] = field(default_factory=list)
    agreeing: int = 0
    steady: int = 0
    joined: list[str] = field(default_factory=list)

    @property
    def first_wrong(self) -> tuple[str, str] | None:
        """The first place that differs; ``None`` if the file agrees.

        The order is: places, then (operation, ``FUSED``), then ("", ``FREE_RUN``), then ("", ``TOP1``).

        Raises:
            ValueError: no image was compared.
        """
        if not self.images:
            raise ValueError("expected at least one compared image, received none")
        fused = {(operation, FUSED): difference for operation, difference in self.fused.items()}
        compared = self.places | fused | {("", FREE_RUN): self.free}
        wrong = next((place for place, difference in compared.items() if not difference.agrees), None)
        return wrong or (None if self._top1_probability >= SMALLEST_TOP1_PROBABILITY else ("", TOP1))

    @property
    def _top1_probability(self) -> float:
        """Fisher's exact test, one-sided: the probability that noise changes the top-1 of as many images."""
        n, theirs, ours = self.images, self.images - self.agreeing, self.images - self.steady
        ways = sum(comb(n, k) * comb(n, theirs + ours - k) for k in range(theirs, min(n, theirs + ours) + 1))
        return ways / comb(2 * n, theirs + ours)

    def summary(self) -> dict[str, Any]:
        """JSON values for the file's metadata and for ``qplug export --json``."""
        worst = max(self.places.values(), key=lambda difference: difference.norm)
        return {
            "images": self.images,
            "batches": self.batches,
            "top1_agreement": self.agreeing / self.images,
            "logits_largest_difference": self.free.largest,
            "logits_norm_of_difference": self.free.norm,
            "logits_sqnr_db": 10.0 * log10(self.free.signal / self.free.noise)
            if self.free.signal and self.free.noise
            else None,
            "logits_norm_of_difference_by_rounding_noise": self.rounding_noise,
            "top1_agreement_by_rounding_noise": self.steady / self.images,
            "fused_largest_norm_of_difference": max((one.norm for one in self.fused.values()), default=None),
            "operations_largest_norm_of_difference": worst.norm,
            "operations_joined": self.joined,
        }
