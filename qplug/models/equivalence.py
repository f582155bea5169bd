"""Checks on real images that a step which promises to preserve the model's function does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qplug.core.errors import EquivalenceError
from qplug.core.task import CLASSIFICATION, Task
from qplug.core.types import Change

LARGEST_CHANGE = 1e-4


class EquivalenceCheck:
    """Compares what a model computes on a few images with what it computed before.

    Args:
        model: the float model, which is watched by reference.
        images: a batch of real ones, or of texts.
        task: what the outputs are.
    """

    def __init__(self, model: nn.Module, images: Tensor, task: Task = CLASSIFICATION) -> None:
        self._model, self._images, self._task = model, images, task
        self.reset()

    def reset(self) -> None:
        """Take what the model computes now as what it must compute from now on."""
        with torch.no_grad():
            self._expected: Tensor = self._model(self._images)

    def error(self) -> float:
        """‖now − before‖ / ‖before‖ of the outputs, without padding."""
        with torch.no_grad():
            return self._task.relative_change(self._expected, self._model(self._images))

    def check(self, changes: Sequence[Change]) -> None:
        """Compare, and start again from here.

        Raises:
            EquivalenceError: every change promised to preserve the function, and the output moved by more than 1e-4.
        """
        if changes and all(change.preserves for change in changes):
            error = self.error()
            if not error <= LARGEST_CHANGE:
                raise EquivalenceError(
                    f"the outputs moved by {error:.1e} of their norm, and at most {LARGEST_CHANGE:.0e} was promised",
                    where=", ".join(dict.fromkeys(change.technique for change in changes)),
                    fix="leave out the technique, or narrow what it matches",
                )
        if changes:
            self.reset()
