"""Backends: the libraries that execute quantized operations. Techniques do not depend on them."""

from qplug.quantization.backends.base import Backend

__all__ = ["Backend"]
