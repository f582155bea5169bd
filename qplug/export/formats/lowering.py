"""A plan over a model, lowered to modules that trace to what a file format holds, whatever the run's backend."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.core.types import Role
from qplug.export.formats.fallback import FloatWeight
from qplug.models.attention import MatMul
from qplug.models.surgery import replace
from qplug.quantization.plan import Decision, Plan


class Format(Protocol):
    """How a file format writes a quantized tensor down."""

    def activation(self, decision: Decision, transposed: bool) -> nn.Module:
        """A module from an activation to its quantized values, their last two axes swapped where ``transposed``."""

    def weight(self, decision: Decision, weight: Tensor, transposed: bool, beside: nn.Module | None) -> nn.Module:
        """A module without inputs that gives the quantized values of ``weight``; of a linear as (I, O).

        ``beside`` is the module of the operation's input, where that is quantized.
        """

    def operation(self, original: nn.Module, decisions: Mapping[Role, Decision]) -> nn.Module | None:
        """The whole operation, where the format has a form of its own for it; ``None`` puts its operands together."""
        return None


class LoweredLinear(nn.Module):
    """x·W + b, W as (I, O): the layout in which runtimes multiply integers without transposing anything."""

    def __init__(self, original: nn.Linear, operands: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.input = operands.get("input", nn.Identity())
        self.weight, self.bias = operands["weight"], original.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        out: Tensor = self.input(x).matmul(self.weight())
        return out if self.bias is None else out + self.bias


class LoweredConv(nn.Module):
    """A convolution of quantized operands, and its bias as an addition of its own.

    ONNX Runtime would make an operator's own bias 32-bit integers of the step s_x·s_w: a channel that batch
    normalization has all but switched off, whose s_w is tiny, then loses its bias (on MobileNetV1: 4 % of the first
    output).
    """

    def __init__(self, original: nn.Conv2d, operands: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.input, self.weight = operands.get("input", nn.Identity()), operands["weight"]
        self.bias, self.geometry = original.bias, copy.copy(original)
        self.geometry._parameters = {"weight": None, "bias": None}  # a program would keep the float weight for nothing

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, O, H', W')."""
        out: Tensor = self.geometry._conv_forward(self.input(x), self.weight(), None)
        return out if self.bias is None else out + self.bias[:, None, None]


class LoweredMatMul(nn.Module):
    """A matmul of attention on quantized operands, the right one transposed before it is multiplied."""

    def __init__(self, original: MatMul, operands: Mapping[str, nn.Module]) -> None:
        super().__init__()
        plain = Transposed() if original.transpose_rhs else nn.Identity()
        self.lhs, self.rhs = operands.get("lhs", nn.Identity()), operands.get("rhs", plain)

    def forward(self, lhs: Tensor, rhs: Tensor) -> Tensor:
        """As ``MatMul``."""
        return torch.matmul(self.lhs(lhs), self.rhs(rhs))


class Transposed(nn.Module):
    """An activation, its last two axes swapped."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, N, D) → (…, D, N)."""
        return x.transpose(-2, -1)


class LoweredInput(nn.Module):
    """A norm or Softmax of a quantized input."""

    def __init__(self, original: nn.Module, operands: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.input, self.original = operands["input"], original

    def forward(self, x: Tensor, *others: Tensor | None) -> Tensor:
        """The original; a mask among ``others`` is no value to quantize."""
        out: Tensor = self.original(self.input(x), *others)
        return out


def operands(lowered: nn.Module) -> int:
    """How many of its arguments a lowered operation quantizes: two of a matmul, one of all others."""
    return 2 if isinstance(lowered, LoweredMatMul) else 1


def lower(model: nn.Module, plan: Plan, form: Format) -> nn.Module:
    """A copy of ``model`` (eval mode, attention explicit, on the CPU) whose planned operations are those of ``form``.

    Raises:
        InputError: an operation or a quantizer that ``form`` cannot express.
    """
    lowered = copy.deepcopy(model)
    for path in plan.modules():
        original = lowered.get_submodule(path)
        decisions = {decision.site.role: decision for decision in plan if decision.site.module == path}
        replace(lowered, original, _operation(path, original, decisions, form))
    return lowered.eval().requires_grad_(False)


def readers(model: nn.Module, plan: Plan, example: Tensor) -> set[str]:
    """The planned operations that read the model's own input, as it is or moved: padded, cut to patches, permuted.

    Args:
        model: which ``plan`` is for.
        plan: of it.
        example: a batch of one; random values, since what moves them is known by giving no others but zeros.
    """
    found: set[str] = set()
    values = torch.cat([example.flatten(), example.new_zeros(1)])

    def hook(path: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args[0].dtype == values.dtype and bool(torch.isin(args[0], values).all()):
                found.add(path)

        return note

    handles = [model.get_submodule(path).register_forward_pre_hook(hook(path)) for path in plan.modules()]
    with torch.no_grad():
        model(example)
    for handle in handles:
        handle.remove()
    return found


def _operation(path: str, original: nn.Module, decisions: Mapping[Role, Decision], form: Format) -> nn.Module:
    whole = form.operation(original, decisions)
    if whole is not None:
        return whole
    swapped = "rhs" if isinstance(original, MatMul) and original.transpose_rhs else ""
    operands: dict[str, nn.Module] = {
        role: form.activation(decision, transposed=role == swapped)
        for role, decision in decisions.items()
        if role != "weight"
    }
    if isinstance(original, MatMul):
        return LoweredMatMul(original, operands)
    if type(original) is nn.Linear or type(original) is nn.Conv2d:
        linear, weight = isinstance(original, nn.Linear), original.weight.detach()
        if "weight" in decisions:
            beside = operands.get("input")
            operands["weight"] = form.weight(decisions["weight"], weight, transposed=linear, beside=beside)
        else:
            operands["weight"] = FloatWeight(weight.t() if linear else weight)
        return LoweredLinear(original, operands) if isinstance(original, nn.Linear) else LoweredConv(original, operands)
    if isinstance(original, (nn.Linear, nn.Conv2d)):
        raise InputError(
            f"a {type(original).__name__} may compute anything, only the class that it derives from can be exported",
            where=path,
            fix=f"leave it in float: quantize.overrides: [{{match: '{path}', skip: true}}]",
        )
    return LoweredInput(original, operands)


def float_weights(lowered: nn.Module, plan: Plan) -> list[str]:
    """Names of the quantized weights that ``lowered`` holds in float32, because their quantizers have no codes."""
    names = (decision.site.name for decision in plan if decision.site.kind.is_weight)
    places = ((name, lowered.get_submodule(name.rpartition(".")[0])) for name in names)
    return [name for name, operation in places if isinstance(getattr(operation, "weight", None), FloatWeight)]
