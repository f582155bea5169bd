"""The protocol that a backend keeps."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import nn

from qplug.quantization.plan import Plan


class Backend(Protocol):
    """Lowers a plan to quantized operations."""

    def apply(self, model: nn.Module, plan: Plan) -> nn.Module:
        """Quantize ``model`` (eval mode, attention explicit) in place, as ``plan`` says, and return it.

        Raises:
            InputError: a quantizer or an operation that the backend cannot execute.
        """
        ...

    def inference(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within it, forwards without gradients are as fast as the backend can make them, and give the same values."""
        ...

    def switched_off(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within it, every quantizer lets its input pass: the model computes what it did before ``apply``."""
        ...
