"""Number formats: a table with one quantizer class per format. Importing this module does not import torch."""

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
    """A set of representable numbers, and the quantizer that rounds to them.

    Attributes:
        name: the value of ``number_format`` in recipes.
        kind: the quantizer's kind in plans.
        path: ``module:Class`` of the quantizer, which has ``from_range(low, high, spec)``.
        bits: the smallest and the largest number of bits.
    """

    name: str
    kind: str
    path: str
    bits: tuple[int, int] = (2, 16)

    def make_quantizer(self, spec: QuantSpec, low: Tensor, high: Tensor) -> Quantizer:
        """As the function ``make_quantizer``."""
        module, _, cls = self.path.partition(":")
        quantizer: Quantizer = getattr(importlib.import_module(module), cls).from_range(low, high, spec)
        return quantizer


NUMBER_FORMATS = {
    number_format.name: number_format
    for number_format in (NumberFormat("int", "uniform", "qplug.quantization.quantizers.uniform:UniformQuantizer"),)
}
"""The formats by name. A new format needs one file with a quantizer, and one row here."""


def make_quantizer(spec: QuantSpec, low: Tensor, high: Tensor) -> Quantizer:
    """The quantizer of the format in ``spec`` whose grid covers exactly [low, high].

    Args:
        spec: number format, bits, granularity and symmetry.
        low, high: float tensors of the shape of the scales: (), (C, 1, …) or (H, 1, 1).
    """
    return NUMBER_FORMATS[spec.number_format].make_quantizer(spec, low, high)
