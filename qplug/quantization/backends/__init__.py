"""Backends: what executes the quantized operations. A technique never sees one."""

from qplug.quantization.backends.base import Backend
from qplug.quantization.backends.lowering import Lowering

__all__ = ["Backend", "Lowering"]
