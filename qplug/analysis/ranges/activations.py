"""How wide activations are along the depth (Q-MLP, Fig. 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qplug.analysis.ranges.depth import Depth
from qplug.core.errors import InputError
from qplug.core.seeding import seeded
from qplug.core.types import Site
from qplug.quantization.calibration.samplers import SampleRows

PERCENTILE = 99.0
BLOCK_OUTPUT = "block_output"
SAMPLED = 2**18
"""Values of one activation that are kept for its percentiles, over all images; 1 MB in float32."""


@dataclass(frozen=True)
class Range:
    """One activation over all images, in the model's own units.

    Attributes:
        name: of the site, or of the block whose output it is.
        kind: of the site, or ``block_output``.
        position: share of the depth, 0 … 1 (see ``Depth``).
        low, high: the smallest and the largest value.
        percentile_low, percentile_high: the 1st and the 99th percentile of the values.
        largest: of the magnitudes, which is what a symmetric range must hold (Q-MLP, Eq. 5).
        percentile: the 99th percentile of the magnitudes.
    """

    name: str
    kind: str
    position: float
    low: float
    high: float
    percentile_low: float
    percentile_high: float
    largest: float
    percentile: float


def activation_ranges(
    model: nn.Module,
    sites: Sequence[Site],
    depth: Depth,
    batches: Iterable[Tensor],
    images: int,
    *,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> list[Range]:
    """The range of every activation site, and of what every block gives, over ``images`` images.

    Extremes are exact. Percentiles, linear between neighbours, are those of at most ``SAMPLED`` values, as many of
    every image: all of them where an image has few, else drawn by ``seed``, with repetition. The padding of a
    convolution does not count.

    Args:
        model: the float model, in eval mode.
        sites: those of weights are passed over.
        depth: where they stand.
        batches: images (B, C, H, W) float32, iterated once.
        images: how many there are in all.
        seed: of what is drawn.
        advance: is told how many images are done.

    Returns:
        Sites in their order, then the blocks in theirs.

    Raises:
        InputError: an activation that is not finite, with the site where it first appears.
    """
    watched = [site for site in sites if not site.kind.is_weight]
    watches = {name: _Watch(name, images, seed) for name in (*(site.name for site in watched), *depth.blocks)}
    handles = [
        model.get_submodule(site.module).register_forward_pre_hook(_input(watches[site.name], site.role == "rhs"))
        for site in watched
    ]
    handles += [model.get_submodule(name).register_forward_hook(_output(watches[name])) for name in depth.blocks]
    done = 0
    try:
        for batch in batches:
            for watch in watches.values():
                watch.first, watch.batch = done, len(batch)
            with torch.no_grad():
                model(batch)
            done += len(batch)
            if advance is not None:
                advance(done)
    finally:
        for handle in handles:
            handle.remove()
    found = [watches[site.name].range(site.kind.value, depth.positions[site.module]) for site in watched]
    return found + [watches[name].range(BLOCK_OUTPUT, depth.positions[name]) for name in depth.blocks]


def _input(watch: _Watch, second: bool) -> Any:
    return lambda _, args: watch.update(args[int(second)])


def _output(watch: _Watch) -> Any:
    return lambda _, __, out: watch.update(out[0] if isinstance(out, tuple) else out)


class _Watch:
    """Extremes and a sample of one activation, batch by batch."""

    def __init__(self, name: str, images: int, seed: int) -> None:
        self.name, self.first, self.batch = name, 0, 0
        self._seed, self._cap = seed, max(1, SAMPLED // images)
        self._expected = images
        self._low, self._high = float("inf"), float("-inf")
        self._sample = SampleRows()

    def update(self, x: Tensor) -> None:
        """Take in that of a batch, where the values of an image are neighbours, those of its windows too."""
        values = x.detach().reshape(self.batch, -1)
        low, high = (float(extreme) for extreme in values.aminmax())
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise InputError(
                "an activation is NaN or infinite on the calibration images",
                where=self.name,
                fix="look for NaN in the checkpoint and in the images, or for a model that overflows float32",
            )
        self._low, self._high = min(self._low, low), max(self._high, high)
        each = min(self._cap, values.shape[1])
        for index, row in enumerate(values, start=self.first):
            if each < len(row):
                with seeded("ranges", self._seed, self.name, index):
                    row = row[torch.randint(len(row), (each,)).to(row.device)]
            self._sample.add(self._sample.length, row, each * self._expected)

    def range(self, kind: str, position: float) -> Range:
        """What was seen."""
        sample = self._sample.values().cpu().numpy()  # NumPy selects where torch sorts: a tenth of the time
        low, high = (float(value) for value in np.percentile(sample, (100 - PERCENTILE, PERCENTILE)))
        percentile = float(np.percentile(np.abs(sample), PERCENTILE))
        largest = max(abs(self._low), abs(self._high))
        return Range(self.name, kind, position, self._low, self._high, low, high, largest, percentile)
