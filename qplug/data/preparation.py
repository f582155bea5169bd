"""``Preparation``, the protocol of conversions of examples to a model's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Preparation(Protocol):
    """Conversion of one item of a data set, of any type, to one input of a model.

    Its ``repr`` is part of cache keys. It must contain everything that affects an input, and be equal in every process.
    """

    def transform(self) -> Callable[[Any], Tensor]:
        """A function from an item to the model's input, without the batch axis.

        If labels depend on the conversion, it returns a ``qplug.core.examples.LabelTransform``.
        """

    def example(self) -> Tensor:
        """One input with the batch axis, on the CPU, equal at every call, for tracing the model."""
