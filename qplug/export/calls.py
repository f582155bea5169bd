"""Names of values in an exported file, and the calls of planned operations in it."""

from __future__ import annotations

from dataclasses import dataclass

INPUT, LOGITS = "input", "logits"
"""Names of the file's input and output."""


@dataclass(frozen=True)
class Call:
    """One call of a planned operation.

    Attributes:
        operation: the operation's path in the model.
        inputs: names of the operands, without masks.
        output: name of the output.
    """

    operation: str
    inputs: tuple[str, ...]
    output: str
