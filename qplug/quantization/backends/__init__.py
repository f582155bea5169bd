"""Backends: the libraries that execute quantized operations. Techniques do not depend on them."""

from qplug.quantization.backends.base import Backend
from qplug.quantization.backends.lowering import Lowering

__all__ = ["Backend", "Lowering"]
