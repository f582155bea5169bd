"""Conventions for counting size and bit operations, by name. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from qplug.core.errors import InputError
from qplug.core.text import did_you_mean


@dataclass(frozen=True)
class Convention:
    """A convention for counting size and bit operations.

    Attributes:
        name: the value of ``--accounting``.
        text: the definition in one line, which is printed beside every figure.
        operations: bit operations of one multiply-accumulate of a one-bit weight and a one-bit activation.
        attention: count the matmuls of attention.
        stored: the size counts the stored data, scales and float32 parameters included. Otherwise every parameter of
            the model counts at the bits of the weights.
        megabyte: bytes per MB.
    """

    name: str
    text: str
    operations: int = 1
    attention: bool = True
    stored: bool = False
    megabyte: int = 10**6

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"

    def key(self, metric: str) -> str:
        """The key of ``metric`` (``size_mb``, ``float.bops_g``, …) in a run's metrics, for this convention."""
        return metric if self.name == DEFAULT else f"accounting.{self.name}.{metric}"


DEFAULT = "full"
"""The convention whose figures have plain names in a run's metrics."""

CONVENTIONS = {
    convention.name: convention
    for convention in (
        Convention(
            "full",
            "MACs × bits × bits, attention's matmuls included, operands in float at 32 bits; "
            "MB of 10^6 bytes as stored, with scales, and in float32 what is not quantized",
            stored=True,
        ),
        Convention(
            "q-mlp",
            "2 × MACs × bits × bits, no matmuls of attention; MB of 10^6 bytes, all parameters at the weights' bits",
            operations=2,
            attention=False,
        ),
        Convention(
            "hawq",
            "MACs × bits × bits, no matmuls of attention; MB of 2^20 bytes, all parameters at the weights' bits",
            attention=False,
            megabyte=2**20,
        ),
    )
}
"""The conventions by name.

- ``full`` counts the whole model as it is [ours].
- ``q-mlp`` is the convention of the tables in Zhao et al. 2023: BOPS are FLOPs × bits × bits (caption of Table 2).
- ``hawq`` is the convention of Yao et al. 2021, HAWQ-V3, inferred from the authors' model zoo. It lists ResNet-18,
  with 11.69 M parameters and 1.814 G MACs, at 44.6 MB and 1,858 G.
"""


def convention(name: str) -> Convention:
    """The convention ``name``; raises ``InputError`` with the known names."""
    if name not in CONVENTIONS:
        known = ", ".join(CONVENTIONS)
        raise InputError(
            f"no convention is called {name!r}",
            where="--accounting",
            fix=did_you_mean(name, list(CONVENTIONS)) or f"there are: {known}",
        )
    return CONVENTIONS[name]
