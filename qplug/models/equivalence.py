"""The guard: a step that promises to preserve the model's function is held to it, on real images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qplug.core.errors import EquivalenceError
from qplug.core.types import MASKED, Change

TOLERANCE = 1e-4


class EquivalenceCheck:
    """Remembers what a model computes on a few images.

    Args:
        model: the float model, which is watched by reference.
        images: a batch of real ones, or of texts.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self._model, self._images = model, images
        self.reset()

    def reset(self) -> None:
        """Take what the model computes now as what it must compute from now on."""
        with torch.no_grad():
            self._expected: Tensor = self._model(self._images)

    def error(self) -> float:
        """‖now − before‖ / ‖before‖ of the logits, without those of padding."""
        with torch.no_grad():
            difference = self._model(self._images) - self._expected
        expected = self._expected.masked_fill(self._expected == MASKED, 0.0)
        return float(difference.norm() / expected.norm().clamp_min(1e-12))

    def check(self, changes: Sequence[Change]) -> None:
        """Compare, and start again from here.

        Raises:
            EquivalenceError: every change promised to preserve the function, and the output moved by more than 1e-4.
        """
        if changes and all(change.preserves for change in changes):
            error = self.error()
            if not error <= TOLERANCE:
                raise EquivalenceError(
                    f"the logits moved by {error:.1e} of their norm, and at most {TOLERANCE:.0e} was promised",
                    where=", ".join(dict.fromkeys(change.technique for change in changes)),
                    fix="leave out the technique, or narrow what it matches",
                )
        if changes:
            self.reset()
