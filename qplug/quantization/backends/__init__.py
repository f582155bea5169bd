"""Backends: what executes the quantized operations. A technique never sees one."""

from qplug.quantization.backends.base import Backend

__all__ = ["Backend"]
