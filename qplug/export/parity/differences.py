"""The difference of two tensors, summed over batches. It separates a tie that rounded the other way from an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor

from qplug.core.text import percent
from qplug.core.types import MASKED

ELEMENT_TOLERANCE = 1e-4
"""An element is off if it differs by more, relative to the root mean square of its tensor.

Measured on ViT-Ti, DeiT-Ti, Swin-Ti, ResNet-18 and MobileNetV1: 2e-5 at most.
"""
LARGEST_SHARE_OFF = 0.5
"""Share of a slice's elements that may be off.

A tie changes few elements of a slice. A wrong scale, zero point or axis changes almost all of them.
"""
SMALLEST_RMS = 1e-12
"""A tensor with a smaller root mean square counts as 0."""


@dataclass
class OutputDifference:
    """The difference of one value between the simulation and a runtime.

    Attributes:
        limit: largest ``norm`` that counts as rounding.
        share: largest ``off`` that counts as rounding.
        signal: Σy² of the simulation.
        noise: Σ(y − ŷ)².
        largest: largest difference of an element.
    """

    limit: float
    share: float = LARGEST_SHARE_OFF
    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    _elements: int = 0
    _off: dict[int, Tensor] = field(default_factory=dict)

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """Add one batch: (B, …) float32 of the simulation and of the runtime.

        Elements that both sides mask are not compared. An element that one side alone masks differs infinitely.

        Raises:
            ValueError: the shapes differ.
        """
        if ours.shape != theirs.shape:
            raise ValueError(f"expected the simulation's shape {tuple(ours.shape)}, received {tuple(theirs.shape)}")
        masked, theirs_masked = ours == MASKED, theirs == MASKED
        ours, theirs = ours.double().masked_fill(masked, 0.0), theirs.double()
        apart = (ours - theirs).abs().masked_fill(masked & theirs_masked, 0.0).masked_fill(masked ^ theirs_masked, inf)
        squares = float(ours.square().sum())
        off = ~(apart <= ELEMENT_TOLERANCE * max((squares / ours.numel()) ** 0.5, SMALLEST_RMS))  # NaN is off
        for axis in range(1, ours.dim()):
            counted = off.movedim(axis, 0).flatten(1).sum(1)
            self._off[axis] = self._off.get(axis, torch.zeros_like(counted)) + counted
        self.signal += squares
        self.noise += float(apart.square().sum())
        self.largest = max(self.largest, float(apart.max())) if apart.isfinite().all() else inf
        self._elements += ours.numel()

    @property
    def norm(self) -> float:
        """Norm of the difference, relative to the norm of the simulation's value."""
        floor = SMALLEST_RMS**2 * self._elements
        return (self.noise / max(self.signal, floor)) ** 0.5 if self._elements else 0.0

    @property
    def off(self) -> float:
        """The largest share of elements that are off in one slice along any axis but the first, such as one channel."""
        shares = (float(counts.max()) * len(counts) / self._elements for counts in self._off.values())
        return max(shares, default=0.0)

    @property
    def agrees(self) -> bool:
        """Whether the whole difference counts as rounding."""
        return self.norm <= self.limit and self.off <= self.share

    def __str__(self) -> str:
        spread = f", up to {percent(self.off, 0)} of a channel, head or token" if self.off else ""
        return f"{self.norm:.1e} of the norm (limit {self.limit:.0e}){spread}"
