"""The quantizer that a technique chooses for one site. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qplug.quantization.quantizers import Quantizer


@dataclass(frozen=True)
class QuantizerChoice:
    """A quantizer for one site, and the reason for it in a few words, which the plan stores."""

    quantizer: Quantizer
    reason: str = ""
