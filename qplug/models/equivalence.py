"""Check on real images that a function-preserving step does not change the model's outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qplug.core.errors import EquivalenceError
from qplug.core.task import CLASSIFICATION, Task
from qplug.core.types import Change

LARGEST_CHANGE = 1e-4
"""Largest change of the outputs by function-preserving steps, as a fraction of their norm."""


class EquivalenceCheck:
    """Comparison of a model's outputs on a few examples before and after a step.

    Args:
        model: the float model, held by reference.
        images: a batch of real images, or of tokenized texts.
        task: the task of the outputs.
    """

    def __init__(self, model: nn.Module, images: Tensor, task: Task = CLASSIFICATION) -> None:
        self._model, self._images, self._task = model, images, task
        self.reset()

    def reset(self) -> None:
        """Store the model's current outputs as the reference."""
        with torch.no_grad():
            self._expected: Tensor = self._model(self._images)

    def error(self) -> float:
        """‖y − reference‖ / ‖reference‖ of the outputs y, without padding."""
        with torch.no_grad():
            return self._task.relative_change(self._expected, self._model(self._images))

    def check(self, changes: Sequence[Change]) -> None:
        """Compare the outputs with the reference after ``changes``, then store new reference outputs.

        Raises:
            EquivalenceError: all changes preserve the function, and the outputs changed by more than 1e-4.
        """
        if changes and all(change.preserves for change in changes):
            error = self.error()
            if not error <= LARGEST_CHANGE:
                raise EquivalenceError(
                    f"the outputs moved by {error:.1e} of their norm, and at most {LARGEST_CHANGE:.0e} was promised",
                    where=", ".join(dict.fromkeys(change.technique for change in changes)),
                    fix="remove the technique from the recipe, or let it match fewer modules",
                )
        if changes:
            self.reset()
