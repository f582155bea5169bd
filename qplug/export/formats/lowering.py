"""Lowering of a plan to modules that trace to a file format's operators, for any backend of the run.

``MAKERS`` maps each type of module to its quantized operation. A new type of operation is one row and its maker.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qplug.core.types import Role
from qplug.export.formats.fallback import FloatWeight
from qplug.export.formats.operations import Convolution, LoweredConv, LoweredInput, LoweredLinear, LoweredMatMul
from qplug.models.attention import MatMul
from qplug.quantization.lowering import replace_planned
from qplug.quantization.plan import Decision, Plan

Decisions = Mapping[Role, Decision]


class Format(Protocol):
    """A file format's modules for quantized tensors."""

    def activation(self, decision: Decision, transposed: bool) -> nn.Module:
        """A module from an activation to its quantized values, with the last two axes swapped if ``transposed``."""

    def weight(self, decision: Decision, weight: Tensor, transposed: bool, beside: nn.Module | None) -> nn.Module:
        """A module without inputs that returns the quantized values of ``weight``.

        Args:
            decision: of the weight.
            weight: (O, …) float32.
            transposed: whether the values are returned as (I, O), for a linear.
            beside: module of the operation's input, if that is quantized.
        """

    def operation(self, original: nn.Module, decisions: Decisions) -> nn.Module | None:
        """A module for the complete operation, if the format has a form of its own; else ``None``."""
        return None


def lower(model: nn.Module, plan: Plan, form: Format) -> nn.Module:
    """A copy of ``model`` (eval mode, explicit attention, on the CPU) with the planned operations of ``form``.

    Raises:
        InputError: ``form`` cannot express an operation or a quantizer.
    """
    lowered = copy.deepcopy(model)
    makers = {kind: partial(_make, form, maker) for kind, maker in MAKERS.items()}
    replace_planned(lowered, plan, makers, partial(_make, form, _input), "an exported file")
    return lowered.eval().requires_grad_(False)


def _make(form: Format, maker: Maker, original: Any, decisions: Decisions) -> nn.Module:
    whole = form.operation(original, decisions)
    lowered = maker(form, original, decisions) if whole is None else whole
    if isinstance(original, (nn.Linear, nn.Conv2d)):
        _keep_dtype(lowered)
    return lowered


def _keep_dtype(lowered: nn.Module) -> None:
    """Let ``lowered.weight.dtype`` be float32: transformers' embeddings convert images to the type of this weight."""
    held = getattr(lowered, "weight", None)
    if held is None:
        held = SimpleNamespace()
        object.__setattr__(lowered, "weight", held)
    object.__setattr__(held, "dtype", torch.float32)


def _linear(form: Format, original: nn.Linear, decisions: Decisions) -> nn.Module:
    return LoweredLinear(original, _with_weight(form, original, decisions, transposed=True))


def _convolution(form: Format, original: Convolution, decisions: Decisions) -> nn.Module:
    return LoweredConv(original, _with_weight(form, original, decisions, transposed=False))


def _matmul(form: Format, original: MatMul, decisions: Decisions) -> nn.Module:
    return LoweredMatMul(original, _activations(form, decisions, "rhs" if original.transpose_rhs else ""))


def _input(form: Format, original: nn.Module, decisions: Decisions) -> nn.Module:
    return LoweredInput(original, _activations(form, decisions))


Maker = Callable[[Format, Any, Decisions], nn.Module]
MAKERS: dict[type[nn.Module], Maker] = {nn.Linear: _linear, nn.Conv2d: _convolution, MatMul: _matmul}
"""Module type → maker of its quantized operation. Norms and Softmax have no row: only their input is quantized."""


def _activations(form: Format, decisions: Decisions, transposed: str = "") -> dict[str, nn.Module]:
    """The operands except for the weight, by role; the role ``transposed`` has its last two axes swapped."""
    return {
        role: form.activation(decision, transposed=role == transposed)
        for role, decision in decisions.items()
        if role != "weight"
    }


def _with_weight(
    form: Format, original: nn.Linear | Convolution, decisions: Decisions, transposed: bool
) -> dict[str, nn.Module]:
    """All operands by role. A weight that the plan leaves out stays in float."""
    operands, weight = _activations(form, decisions), original.weight.detach()
    if "weight" in decisions:
        beside = operands.get("input")
        operands["weight"] = form.weight(decisions["weight"], weight, transposed=transposed, beside=beside)
    else:
        operands["weight"] = FloatWeight(weight.t() if transposed else weight)
    return operands


def readers(model: nn.Module, plan: Plan, example: Tensor) -> set[str]:
    """The planned operations that read the model's own input, unchanged or moved: padded, cut to patches, permuted.

    An operation reads it if every value of its operand is a value of the input, or zero.

    Args:
        model: which ``plan`` quantizes.
        plan: of the model.
        example: a batch of one with random values.
    """
    found: set[str] = set()
    values = torch.cat([example.flatten(), example.new_zeros(1)])

    def input_hook(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args[0].dtype == values.dtype and bool(torch.isin(args[0], values).all()):
                found.add(path)

        return hook

    handles = [model.get_submodule(path).register_forward_pre_hook(input_hook(path)) for path in plan.modules()]
    with torch.no_grad():
        model(example)
    for handle in handles:
        handle.remove()
    return found


def float_weights(lowered: nn.Module, plan: Plan) -> list[str]:
    """Names of the quantized weights that ``lowered`` holds in float32, because their quantizers have no codes."""
    names = (decision.site.name for decision in plan if decision.site.kind.is_weight)
    places = ((name, lowered.get_submodule(name.rpartition(".")[0])) for name in names)
    return [name for name, operation in places if isinstance(getattr(operation, "weight", None), FloatWeight)]
