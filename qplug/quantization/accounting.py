"""How size and bit operations are counted: conventions by name. Importing this does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from qplug.core.errors import InputError
from qplug.core.text import did_you_mean


@dataclass(frozen=True)
class Convention:
    """One way to count.

    Attributes:
        name: as ``--accounting`` takes it.
        text: what is counted, in a line that stands beside every figure.
        operations: bit operations of one multiply-accumulate of a one-bit weight and a one-bit activation.
        attention: whether attention's matmuls count.
        stored: whether sizes are those of what is stored, scales and float32 parameters included; else every parameter
            of the model counts at the bits of the weights.
        megabyte: bytes to the MB.
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
        """Where a run's metrics keep ``metric`` (``size_mb``, ``float.bops_g``, …) by this convention."""
        return metric if self.name == DEFAULT else f"accounting.{self.name}.{metric}"


DEFAULT = "full"
"""The convention whose figures a run's metrics hold under their plain names."""

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
"""``full`` is ours: everything counts, as it is. ``q-mlp`` is what the tables of Zhao et al. 2023 were counted by: BOPS
are FLOPs × bits × bits (caption of Table 2). ``hawq`` is that of Yao et al. 2021, HAWQ-V3, read off the authors' model
zoo: ResNet-18, 11.69 M parameters and 1.814 G MACs, has 44.6 MB and 1,858 G there."""


def convention(name: str) -> Convention:
    """The convention of a name; raises ``InputError`` with the names that there are."""
    if name not in CONVENTIONS:
        known = ", ".join(CONVENTIONS)
        raise InputError(
            f"no convention is called {name!r}",
            where="--accounting",
            fix=did_you_mean(name, list(CONVENTIONS)) or f"there are: {known}",
        )
    return CONVENTIONS[name]
