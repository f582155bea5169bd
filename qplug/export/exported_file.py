"""The protocol of an exported file in memory, which a format makes and a runtime executes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from qplug.export.calls import Call


class ExportedFile(Protocol):
    """A file before it is written.

    Attributes:
        model: the graph or program; it returns the logits.
        calls: each call of a planned operation in ``model``, in order.
        float_weights: quantized weights that the file holds in float32, because their quantizers have no codes.
        joined: operation → the planned operations before it that the file merges. Merged operations have no call.
    """

    model: Any
    calls: list[Call]
    float_weights: list[str]
    joined: dict[str, list[str]]

    def content(self, metadata: Mapping[str, str]) -> bytes:
        """The file's bytes, with ``metadata`` in it."""
        ...
