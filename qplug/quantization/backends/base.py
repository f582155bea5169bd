"""The protocol that a backend implements."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from torch import nn

from qplug.quantization.plan import Plan


class Backend(Protocol):
    """Lowers a plan to quantized operations."""

    def apply(self, model: nn.Module, plan: Plan) -> nn.Module:
        """Quantize ``model`` (eval mode, explicit attention) in place by ``plan``, and return it.

        The quantized operation stands at the path of the planned module: a run counts its calls there.

        Raises:
            InputError: the backend cannot execute a quantizer or an operation.
        """
        ...

    def refusals(self, model: nn.Module, modules: Iterable[str]) -> dict[str, str]:
        """The paths among ``modules`` that ``apply`` refuses whatever their quantizers, each with the reason.

        A run stops before it calibrates them. A backend without this method refuses in ``apply`` alone.
        """
        ...

    def inference(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within it, forwards compute no gradients, return the same values, and are as fast as the backend allows."""
        ...

    def switched_off(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within it, every quantizer returns its input: the model computes its values from before ``apply``."""
        ...
