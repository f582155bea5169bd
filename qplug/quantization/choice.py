"""A technique's answer for one site. Importing this does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qplug.quantization.quantizers import Quantizer


@dataclass(frozen=True)
class QuantizerChoice:
    """A quantizer for one site, and in a few words why it became this one (shown in the plan)."""

    quantizer: Quantizer
    reason: str = ""
