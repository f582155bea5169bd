"""Names of values in an exported file, and the calls of the operations that it holds."""

from __future__ import annotations

from dataclasses import dataclass

INPUT, LOGITS = "input", "logits"
"""The file's own input and output."""


@dataclass(frozen=True)
class Call:
    """One call of a planned operation: the names of the values that it reads (masks are not among them) and gives."""

    operation: str
    inputs: tuple[str, ...]
    output: str
