"""The protocol that a runtime implements for the parity check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from qplug.export.calls import Call


class Runtime(Protocol):
    """Executes one file on the CPU.

    Attributes:
        calls: of the file's planned operations, in order.
    """

    calls: Sequence[Call]

    def logits(self, x: Tensor) -> Tensor:
        """Run the file unchanged: a batch → its logits."""

    def watch(self, x: Tensor) -> Iterator[dict[str, Tensor]]:
        """Run a batch and return the input, the logits and every value that a call names.

        Yields one dictionary for each way in which the runtime can execute the file.
        """

    def fused(self, x: Tensor) -> Iterator[dict[str, Tensor]]:
        """Run a batch and return the input, the logits and the outputs of some calls.

        The runtime may fuse kernels across the calls that are left out. A runtime without fusion yields nothing.
        """
