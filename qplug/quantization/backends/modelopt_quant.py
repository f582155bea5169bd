"""How a quantizer becomes ModelOpt's ``TensorQuantizer``, exactly.

ModelOpt's own fake quantization multiplies by the rounded reciprocal m/amax and divides by it again, so that a value
near the middle of two integers may fall to the other side of qplug's x/s, and no value is s times its integer to the
last bit. Each ``TensorQuantizer`` therefore *says* in ModelOpt's terms what it is (bits, sign, axis, amax), as its
summaries and exporters read it, and computes by a registered quantization backend, which is the plan's quantizer.
Without ``backend``, a symmetric uniform one computes the same natively, but for that rounding.
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
"""Of the registered quantization backend."""


class Planned(nn.Module):
    """The plan's quantizer within a ``TensorQuantizer``; outside of inference its gradients are straight through."""

    def __init__(self, quantizer: Quantizer, weight: bool) -> None:
        super().__init__()
        self.quantizer, self._weight = quantizer, weight
        self.inferring = False
        self._cached: Tensor | None = None

    def begin_inference(self) -> None:
        """From here on the values are computed as fast as can be, those of a weight once."""
        self.inferring = True

    def end_inference(self) -> None:
        """Gradients again."""
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
    """A ``TensorQuantizer`` whose amax follows the plan's scale, also while that is learned."""

    @property
    def _amax(self) -> Tensor:
        """s·high of a symmetric uniform quantizer; like a buffer of ModelOpt's, absent for any other."""
        quantizer = self.planned.quantizer
        if not isinstance(quantizer, UniformQuantizer) or not quantizer.symmetric:
            raise AttributeError("_amax")
        return (quantizer.scale * quantizer.high).detach()


def tensor_quantizer(quantizer: Quantizer, weight: bool = False) -> Any:
    """The ``TensorQuantizer`` that computes ``quantizer``; a uniform one's scale is a parameter, which can be learned.

    Args:
        quantizer: of the plan, or a learner; copied unless it has parameters, which are learned in their place.
        weight: whether it is always given the same tensor, a weight.
    """
    if not is_registered_quant_backend(NAME):
        register_quant_backend(NAME, _compute)
    made = PlannedTensorQuantizer(QuantizerAttributeConfig(backend=NAME, **_attributes(quantizer)))
    made.planned = Planned(_learnable(quantizer), weight)
    return made


def _compute(x: Tensor, quantizer: Any) -> Tensor:
    """The entry point that ModelOpt calls."""
    values: Tensor = quantizer.planned(x)
    return values


def _attributes(quantizer: Quantizer) -> dict[str, Any]:
    """What the quantizer is in ModelOpt's terms; its kind where those do not tell all."""
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
