"""Ranges of activations along the depth (Q-MLP, Fig. 2)."""

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
from qplug.models.batch_axes import BatchAxes, axes_and_batches, batch_first
from qplug.quantization.calibration.sample_rows import SampleRows

PERCENTILE = 99.0
BLOCK_OUTPUT = "block_output"
SAMPLED = 2**18
"""Sampled values of one activation for its percentiles, over all images; 1 MB in float32."""


@dataclass(frozen=True)
class ActivationRange:
    """One activation over all images, in the model's own units.

    Attributes:
        name: name of the site, or path of the block for a block's output.
        kind: kind of the site, or ``block_output``.
        position: share of the depth, between 0 and 1 (see ``Depth``).
        low, high: smallest and largest value.
        percentile_low, percentile_high: 1st and 99th percentile of the values.
        largest: largest magnitude, the bound of a symmetric range (Q-MLP, Eq. 5).
        percentile: 99th percentile of the magnitudes.
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
) -> list[ActivationRange]:
    """The range of each activation site, and of each block's output, over ``images`` images.

    Extremes are exact. Percentiles interpolate linearly between at most ``SAMPLED`` values, the same number from each
    image. If an image has more values, they are drawn with repetition by ``seed``. The padding of a convolution does
    not count.

    Args:
        model: float model in eval mode.
        sites: sites of the model; those of weights are ignored.
        depth: positions of the sites and blocks.
        batches: images (B, C, H, W) float32, iterated once.
        images: number of images in all batches.
        seed: seed of the sample.
        advance: called with the number of finished images.

    Returns:
        Ranges of the sites in their order, then of the blocks in theirs.

    Raises:
        InputError: an activation is not finite, with the first such site.
    """
    activation_sites = [site for site in sites if not site.kind.is_weight]
    recorders = {
        name: _RangeRecorder(name, images, seed) for name in (*(site.name for site in activation_sites), *depth.blocks)
    }
    axes, batches = axes_and_batches(model, dict.fromkeys(site.module for site in activation_sites), batches)
    handles = [
        model.get_submodule(site.module).register_forward_pre_hook(
            _input(recorders[site.name], axes, site.module, int(site.role == "rhs"))
        )
        for site in activation_sites
    ]
    handles += [model.get_submodule(name).register_forward_hook(_output(recorders[name])) for name in depth.blocks]
    done = 0
    try:
        for batch in batches:
            for recorder in recorders.values():
                recorder.begin_batch(done, len(batch))
            with torch.no_grad():
                model(batch)
            done += len(batch)
            if advance is not None:
                advance(done)
    finally:
        for handle in handles:
            handle.remove()
    ranges = [recorders[site.name].range(site.kind.value, depth.positions[site.module]) for site in activation_sites]
    return ranges + [recorders[name].range(BLOCK_OUTPUT, depth.positions[name]) for name in depth.blocks]


def _input(recorder: _RangeRecorder, axes: BatchAxes, module: str, operand: int) -> Any:
    return lambda _, args: recorder.update(args[operand], axes.of(module, recorder.call).of(operand))


def _output(recorder: _RangeRecorder) -> Any:
    return lambda _, __, out: recorder.update(out[0] if isinstance(out, tuple) else out)


class _RangeRecorder:
    """Records the extremes and a sample of one activation, batch by batch."""

    def __init__(self, name: str, images: int, seed: int) -> None:
        self.name = name
        self.begin_batch(0, 0)
        self._seed, self._cap = seed, max(1, SAMPLED // images)
        self._expected = images
        self._low, self._high = float("inf"), float("-inf")
        self._sample = SampleRows()

    def begin_batch(self, first: int, batch: int) -> None:
        """Set the index of the next batch's first image, and the number of its images."""
        self.first, self.batch, self.call = first, batch, 0

    def update(self, x: Tensor, axis: int | None = 0) -> None:
        """Add the activation of a batch. The values of an image, windows included, must be contiguous.

        ``axis`` is that of the batch; ``None`` for a constant, which every image gets.
        """
        self.call += 1
        x = x.detach()
        values = x.reshape(1, -1).expand(self.batch, -1) if axis is None else batch_first(x, axis)
        values = values.reshape(self.batch, -1)
        low, high = (float(extreme) for extreme in values.aminmax())
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise InputError(
                "expected finite activations on the calibration images, received NaN or infinity",
                where=self.name,
                fix="check the checkpoint and the images for NaN, and the model for overflow of float32",
            )
        self._low, self._high = min(self._low, low), max(self._high, high)
        each = min(self._cap, values.shape[1])
        for index, row in enumerate(values, start=self.first):
            if each < len(row):
                with seeded("ranges", self._seed, self.name, index):
                    row = row[torch.randint(len(row), (each,)).to(row.device)]
            self._sample.add(self._sample.length, row, each * self._expected)

    def range(self, kind: str, position: float) -> ActivationRange:
        """The range of all batches so far."""
        sample = self._sample.values().cpu().numpy()  # NumPy selects and torch sorts: a tenth of the time
        low, high = (float(value) for value in np.percentile(sample, (100 - PERCENTILE, PERCENTILE)))
        percentile = float(np.percentile(np.abs(sample), PERCENTILE))
        largest = max(abs(self._low), abs(self._high))
        return ActivationRange(self.name, kind, position, self._low, self._high, low, high, largest, percentile)
