"""Quantizers as ModelOpt's ``TensorQuantizer``, with exactly the same values.

ModelOpt's own fake quantization multiplies by the rounded reciprocal m/amax and divides by it again. A value near the
middle of two integers may then round to the other one than qplug's x/s. Values differ from s times their integers
in the last bit.

Each ``TensorQuantizer`` therefore describes itself in ModelOpt's terms (bits, sign, axis, amax), which ModelOpt's
summaries and exporters read. It computes by a registered quantization backend, the plan's quantizer.
Without ``backend``, a symmetric uniform quantizer computes the same natively, except for that rounding.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

from torch import Tensor, nn

from qplug.quantization.quantizers import Quantizer, UniformQuantizer

with warnings.catch_warnings():  # see qplug.quantization.backends.modelopt
    warnings.simplefilter("ignore")
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import TensorQuantizer, is_registered_quant_backend, register_quant_backend

NAME = "qplug"
"""Name of the registered quantization backend."""


class Planned(nn.Module):
    """The plan's quantizer in a ``TensorQuantizer``, with straight-through gradients outside of inference."""

    def __init__(self, quantizer: Quantizer, weight: bool) -> None:
        super().__init__()
        self.quantizer, self._weight = quantizer, weight
        self.inferring = False
        self._cached: Tensor | None = None

    def begin_inference(self) -> None:
        """Compute values without gradients from now on, and those of a weight once."""
        self.inferring = True

    def end_inference(self) -> None:
        """Compute gradients again."""
        self.inferring, self._cached = False, None

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize ``x``."""
        if not self.inferring:
            values: Tensor = self.quantizer(x)
            return values
        if not self._weight:
            return self.quantizer.infer(x)
        if self._cached is None:
            self._cached = self.quantizer.infer(x.detach())
        return self._cached


class PlannedTensorQuantizer(TensorQuantizer):  # type: ignore[misc]  # modelopt has no types
    """A ``TensorQuantizer`` whose amax follows the plan's scale, also during training."""

    @property
    def _amax(self) -> Tensor:
        """s·high of a symmetric uniform quantizer. Any other quantizer has no such attribute, as in ModelOpt."""
        quantizer = self.planned.quantizer
        if not isinstance(quantizer, UniformQuantizer) or not quantizer.symmetric:
            raise AttributeError("_amax")
        return (quantizer.scale * quantizer.high).detach()


def tensor_quantizer(quantizer: Quantizer, weight: bool = False) -> Any:
    """The ``TensorQuantizer`` that computes ``quantizer``. The scale of a uniform one is a parameter.

    Args:
        quantizer: of the plan, or a learner. A uniform one is copied; others are used directly.
        weight: whether its input is always the same tensor, a weight.
    """
    if not is_registered_quant_backend(NAME):
        register_quant_backend(NAME, _compute)
    made = PlannedTensorQuantizer(QuantizerAttributeConfig(backend=NAME, **_attributes(quantizer)))
    made.planned = Planned(_learnable(quantizer), weight)
    return made


def _compute(x: Tensor, quantizer: Any) -> Tensor:
    """Entry point of the registered backend, which ModelOpt calls."""
    values: Tensor = quantizer.planned(x)
    return values


def _attributes(quantizer: Quantizer) -> dict[str, Any]:
    """The quantizer in ModelOpt's terms, with its kind if they do not describe it completely."""
    if not isinstance(quantizer, UniformQuantizer):
        return {"num_bits": quantizer.bits, "backend_extra_args": {"quantizer": quantizer.kind}}
    several = [axis - quantizer.scale.dim() for axis, size in enumerate(quantizer.scale.shape) if size > 1]
    axis = tuple(several) if len(several) > 1 else several[0] if several else None
    more = {} if quantizer.symmetric else {"backend_extra_args": {"quantizer": "uniform asymmetric"}}
    return {"num_bits": quantizer.bits, "unsigned": not quantizer.signed, "axis": axis, **more}


def _learnable(quantizer: Quantizer) -> Quantizer:
    if not isinstance(quantizer, UniformQuantizer):
        return quantizer
    quantizer = copy.deepcopy(quantizer)
    scale = quantizer.scale
    del quantizer.scale
    quantizer.register_parameter("scale", nn.Parameter(scale.clone()))
    return quantizer
