"""What every backend does alike: it puts a lowered module in the place of each operation of a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import chain
from typing import Any, ClassVar

from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.core.seeding import seeded
from qplug.models.attention import MatMul
from qplug.models.surgery import replace
from qplug.quantization.plan import Plan
from qplug.quantization.quantizers import Quantizer


class QuantMatMul(nn.Module):
    """A matmul of attention whose operands pass a quantizing module each, or ``nn.Identity``."""

    def __init__(self, original: MatMul, lhs: nn.Module, rhs: nn.Module) -> None:
        super().__init__()
        self.lhs_quant, self.rhs_quant, self.matmul = lhs, rhs, original

    def forward(self, lhs: Tensor, rhs: Tensor) -> Tensor:
        """As ``MatMul``, on fake-quantized operands."""
        out: Tensor = self.matmul(self.lhs_quant(lhs), self.rhs_quant(rhs))
        return out


class QuantInput(nn.Module):
    """A norm or Softmax whose input passes a quantizing module."""

    def __init__(self, original: nn.Module, quant: nn.Module) -> None:
        super().__init__()
        self.input_quant, self.operation = quant, original

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """The original on its fake-quantized input; a mask is no value to quantize."""
        out: Tensor = self.operation(self.input_quant(x), *others)
        return out


def like(original: nn.Linear | nn.Conv2d, linear: Any, conv: Any, **more: Any) -> nn.Module:
    """``linear`` or ``conv``, a library's class, of the shape of ``original`` and with its very parameters."""
    more |= {"bias": original.bias is not None, "dtype": original.weight.dtype}
    layer: Any
    if isinstance(original, nn.Linear):
        layer = linear(original.in_features, original.out_features, **more)
    else:
        layer = conv(
            original.in_channels,
            original.out_channels,
            original.kernel_size,
            stride=original.stride,
            padding=original.padding,
            padding_mode=original.padding_mode,
            dilation=original.dilation,
            groups=original.groups,
            **more,
        )
    layer.weight, layer.bias = original.weight, original.bias
    made: nn.Module = layer
    return made


class Lowering(ABC):
    """The half of a ``Backend`` that does not depend on the library: subclasses lower one operation at a time.

    A subclass sets ``name``, as recipes write it, and implements ``layer``, ``activation``, ``inference`` and
    ``switched_off``. The module that ``layer`` returns holds the very parameters of the original, as ``weight`` and
    ``bias``: training and reconstruction change them there. It holds the quantizers themselves too, not copies of them:
    a learner in the place of a quantizer gets its gradients there. ``qplug.testing.BackendContract`` checks both.
    """

    name: ClassVar[str]

    def apply(self, model: nn.Module, plan: Plan) -> nn.Module:
        """See ``Backend.apply``."""
        quantizers = (decision.quantizer for decision in plan)
        held = chain(model.parameters(), *(quantizer.buffers() for quantizer in quantizers))
        device = next(tensor.device for tensor in held)  # a part of a model may have quantizers and no parameters
        for path in plan.modules():
            original = model.get_submodule(path)
            with seeded(path):  # a library's layers may draw weights before they get the model's
                lowered = self._lower(path, original, plan.of(path))
            replace(model, original, lowered.eval().to(device))  # a stored plan is on the CPU
        return model

    @abstractmethod
    def layer(self, original: nn.Linear | nn.Conv2d, quantizers: Mapping[str, Quantizer]) -> nn.Module:
        """The library's own layer with the parameters of ``original``; ``quantizers`` by role, weight and input."""

    @abstractmethod
    def activation(self, quantizer: Quantizer) -> nn.Module:
        """A module that fake-quantizes what it is given."""

    def _lower(self, path: str, original: nn.Module, quantizers: Mapping[str, Quantizer]) -> nn.Module:
        if isinstance(original, MatMul):
            operands = (quantizers.get(role) for role in ("lhs", "rhs"))
            return QuantMatMul(original, *(self.activation(one) if one else nn.Identity() for one in operands))
        if type(original) is nn.Linear or type(original) is nn.Conv2d:
            return self.layer(original, quantizers)
        if isinstance(original, (nn.Linear, nn.Conv2d)):
            raise InputError(
                f"{self.name} cannot hold a {type(original).__name__}, only the class that it derives from",
                where=path,
                fix=f"leave it in float: quantize.overrides: [{{match: '{path}', skip: true}}]",
            )
        return QuantInput(original, self.activation(quantizers["input"]))
