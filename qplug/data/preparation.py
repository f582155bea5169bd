"""How an example becomes a model's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Preparation(Protocol):
    """How one item of a data set becomes one input of a model, whatever the items are.

    Its ``repr`` is part of what cached results are known by: it must tell all that changes an input, and be the same in
    every process.
    """

    def transform(self) -> Callable[[Any], Tensor]:
        """A function from an item to the model's input, without the batch axis.

        Where labels depend on how the input is made, it is a ``qplug.core.examples.LabelTransform``.
        """

    def example(self) -> Tensor:
        """One input with the batch axis, on the CPU, the same at every call: the model is traced with it."""
