"""The part of a backend that does not depend on its library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from qplug.core.types import Role
from qplug.models.attention import MatMul
from qplug.quantization.lowering import Maker, refusals, replace_planned
from qplug.quantization.plan import Decision, Plan
from qplug.quantization.quantizers import Quantizer

LINEAR = ("in_features", "out_features")
CONVOLUTION = (
    *("in_channels", "out_channels", "kernel_size", "stride"),
    *("padding", "padding_mode", "dilation", "groups"),
)
"""Arguments of layers, which are attributes of the same names too."""


class QuantMatMul(nn.Module):
    """A matmul of attention. Each operand passes a quantizing module, or ``nn.Identity`` if it stays in float."""

    def __init__(self, original: MatMul, lhs: nn.Module, rhs: nn.Module) -> None:
        super().__init__()
        self.lhs_quant, self.rhs_quant, self.matmul = lhs, rhs, original

    def forward(self, lhs: Tensor, rhs: Tensor) -> Tensor:
        """``MatMul`` of the fake-quantized operands."""
        out: Tensor = self.matmul(self.lhs_quant(lhs), self.rhs_quant(rhs))
        return out


class QuantInput(nn.Module):
    """A norm or Softmax whose input passes a quantizing module."""

    def __init__(self, original: nn.Module, quant: nn.Module) -> None:
        super().__init__()
        self.input_quant, self.operation = quant, original

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """The original on its fake-quantized input. ``others``, such as a mask, are not quantized."""
        out: Tensor = self.operation(self.input_quant(x), *others)
        return out


def like(original: nn.Module, layer: Any, **more: Any) -> nn.Module:
    """A layer of a library with the shape and the parameters of ``original``.

    Args:
        original: a linear or a convolution.
        layer: the library's class, which takes the arguments of the original's class.
        more: further arguments of ``layer``.
    """
    names = LINEAR if isinstance(original, nn.Linear) else CONVOLUTION
    shape = {name: getattr(original, name) for name in names}
    made: nn.Module = layer(**shape, bias=original.bias is not None, dtype=original.weight.dtype, **more)
    made.weight, made.bias = original.weight, original.bias
    return made


class Lowering(ABC):
    """The half of a ``Backend`` that does not depend on the library: subclasses lower one operation at a time.

    A subclass sets ``name`` and ``layers``, and implements ``layer``, ``activation``, ``inference`` and
    ``switched_off``. The module that ``layer`` returns holds the very parameters of the original, as ``weight`` and
    ``bias``: training and reconstruction change them there. It holds the quantizers themselves too, not copies of them:
    a learner in the place of a quantizer gets its gradients there. ``qplug.testing.BackendContract`` checks both.

    Attributes:
        name: the library's name, as recipes write it.
        layers: module type → the library's class for it, which ``layer`` builds. A new type of layer is one row.
    """

    name: ClassVar[str]
    layers: ClassVar[Mapping[type[nn.Module], Any]]

    def apply(self, model: nn.Module, plan: Plan) -> nn.Module:
        """See ``Backend.apply``."""
        makers: dict[type[nn.Module], Maker] = dict.fromkeys(self.layers, self._layer) | {MatMul: self._matmul}
        replace_planned(model, plan, makers, self._input, self.name)
        return model

    def refusals(self, model: nn.Module, modules: Iterable[str]) -> dict[str, str]:
        """See ``Backend.refusals``."""
        return refusals(model, modules, (*self.layers, MatMul), self.name)

    @abstractmethod
    def layer(self, original: nn.Module, quantizers: Mapping[str, Quantizer]) -> nn.Module:
        """The library's layer with the parameters of ``original``.

        Args:
            original: of a type of ``layers``.
            quantizers: by role, ``weight`` and ``input``; a role that stays in float is absent.
        """

    @abstractmethod
    def activation(self, quantizer: Quantizer) -> nn.Module:
        """A module that fake-quantizes its input."""

    def _layer(self, original: nn.Module, decisions: Mapping[Role, Decision]) -> nn.Module:
        return self.layer(original, {role: decision.quantizer for role, decision in decisions.items()})

    def _matmul(self, original: MatMul, decisions: Mapping[Role, Decision]) -> nn.Module:
        operands = (decisions.get(role) for role in ("lhs", "rhs"))
        return QuantMatMul(original, *(self.activation(one.quantizer) if one else nn.Identity() for one in operands))

    def _input(self, original: nn.Module, decisions: Mapping[Role, Decision]) -> nn.Module:
        return QuantInput(original, self.activation(decisions["input"].quantizer))
