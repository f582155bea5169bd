"""Mr.BiQ (Jeon et al. 2022): weights as sums of scaled signs, learned block by block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qplug_plugins.mr_biq.binary_coding import BinaryCoding
from qplug_plugins.mr_biq.reconstruct import Reconstruct

from qplug import Technique, hookimpl


@hookimpl
def qplug_techniques() -> Iterable[type[Technique]]:
    """Binary-coded weights, and their reconstruction."""
    return [BinaryCoding, Reconstruct]


@hookimpl
def qplug_quantizers() -> Mapping[str, str]:
    """The quantizer of binary-coded weights."""
    return {"binary_coding": "qplug_plugins.mr_biq.quantizer:BinaryCodingQuantizer"}
