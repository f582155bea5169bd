"""Number formats: one quantizer class a format, one row each. Importing this does not import torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qplug.core.types import QuantSpec

if TYPE_CHECKING:
    from torch import Tensor

    from qplug.quantization.quantizers import Quantizer


@dataclass(frozen=True)
class NumberFormat:
    """The numbers that a quantized tensor may hold.

    Attributes:
        name: as recipes write it, in ``number_format``.
        kind: of its quantizer, as plans write it.
        path: ``module:Class`` of the quantizer, which has ``from_range(low, high, spec)``.
        bits: the smallest and the largest width of a number.
    """

    name: str
    kind: str
    path: str
    bits: tuple[int, int] = (2, 16)

    def make_quantizer(self, spec: QuantSpec, low: Tensor, high: Tensor) -> Quantizer:
        """As ``make_quantizer``."""
        module, _, cls = self.path.partition(":")
        made: Quantizer = getattr(importlib.import_module(module), cls).from_range(low, high, spec)
        return made


NUMBER_FORMATS = {
    number_format.name: number_format
    for number_format in (NumberFormat("int", "uniform", "qplug.quantization.quantizers.uniform:UniformQuantizer"),)
}
"""Every format by its name. A format is one file with a quantizer and one row here."""


def make_quantizer(spec: QuantSpec, low: Tensor, high: Tensor) -> Quantizer:
    """The quantizer of the format that ``spec`` asks for, whose grid just holds [low, high].

    Args:
        spec: number format, bits, granularity and symmetry.
        low, high: float tensors of the shape of the scales: (), (C, 1, …) or (H, 1, 1).
    """
    return NUMBER_FORMATS[spec.number_format].make_quantizer(spec, low, high)
