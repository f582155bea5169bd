"""The protocol that a backend implements."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import nn

from qplug.quantization.plan import Plan


class Backend(Protocol):
    """Lowers a plan to quantized operations."""

    def apply(self, model: nn.Module, plan: Plan) -> nn.Module:
        """Quantize ``model`` (eval mode, explicit attention) in place by ``plan``, and return it.

        Raises:
            InputError: the backend cannot execute a quantizer or an operation.
        """
        ...

    def inference(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within it, forwards compute no gradients, return the same values, and are as fast as the backend allows."""
        ...

    def switched_off(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within it, every quantizer returns its input: the model computes its values from before ``apply``."""
        ...
