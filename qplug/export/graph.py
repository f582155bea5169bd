"""A lowered model as an ONNX graph: traced, tidied, its integers as narrow as the format has them, its values named."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn
from torch.export import Dim

from qplug.export.lower import operands

INPUT, LOGITS = "input", "logits"
WITHIN = "model."
"""What the names of a watched model's parts begin with."""
INTEGERS = {
    (2, True): ir.DataType.INT2,
    (2, False): ir.DataType.UINT2,
    (4, True): ir.DataType.INT4,
    (4, False): ir.DataType.UINT4,
    (8, True): ir.DataType.INT8,
    (8, False): ir.DataType.UINT8,
    (16, True): ir.DataType.INT16,
    (16, False): ir.DataType.UINT16,
}
"""(bits, signed) → ONNX's type."""


@dataclass(frozen=True)
class Call:
    """One call of a planned operation: the names of the values that it reads (masks are not among them) and gives."""

    operation: str
    inputs: tuple[str, ...]
    output: str


@dataclass
class _Calls:
    """What a traced forward called; no list of a module's, which torch.export would set back."""

    of: list[tuple[str, int]] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


class Watched(nn.Module):
    """A lowered model that returns, behind its logits, the operands and the output of each operation's calls."""

    def __init__(self, model: nn.Module, operations: Sequence[str]) -> None:
        super().__init__()
        self.model, self.calls = model, _Calls()
        for path in operations:
            model.get_submodule(path).register_forward_hook(self._hook(path))
        self.eval()

    def _hook(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            count = operands(module)
            self.calls.of.append((path, count))
            self.calls.values += [value.clone() for value in (*args[:count], out)]  # a ReLU may overwrite them

        return hook

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The logits, then for each call its operands and its output."""
        self.calls.of.clear()
        self.calls.values.clear()
        logits = self.model(x)
        return (logits, *self.calls.values)


def build(model: nn.Module, operations: Sequence[str], example: Tensor, opset: int) -> tuple[ir.Model, list[Call]]:
    """Trace a lowered model.

    Args:
        model: from ``lower``.
        operations: the plan's, which become ``Call``s.
        example: a batch of one; the file takes batches of any size.
        opset: ONNX's version of its operators.

    Returns:
        The model, with ``logits`` and the values of every call as outputs, and the calls in their order.
    """
    watched = Watched(model, operations)
    with torch.no_grad():
        program = torch.onnx.export(
            watched,
            (torch.cat([example, example]),),  # a batch of one would be traced as if it always were one
            dynamic_shapes=({0: Dim("batch")},),
            opset_version=opset,
            optimize=False,  # it would fold weights back to float
            verbose=False,
        )
    assert program is not None
    traced = program.model
    calls = _name(traced.graph, watched.calls.of)
    _narrow(traced.graph, model)
    optimize_ir(traced, should_fold=_keep_integers)
    _tidy(traced)
    return traced, calls


def only_logits(model: ir.Model) -> None:
    """Let the model give its logits and nothing else."""
    while len(model.graph.outputs) > 1:  # a slice would be deleted without the values' knowing
        model.graph.outputs.pop()


def _name(graph: ir.Graph, calls: Sequence[tuple[str, int]]) -> list[Call]:
    """Name the outputs by the calls that they belong to, each once: what one gives another may read."""
    outputs = list(graph.outputs)
    graph.inputs[0].name = INPUT
    outputs[0].name = LOGITS
    named = {id(graph.inputs[0]), id(outputs[0])}

    def name_of(value: ir.Value, name: str) -> str:
        if id(value) not in named:
            named.add(id(value))
            value.name = name
        assert value.name is not None
        return value.name

    found: list[Call] = []
    rest = outputs[1:]
    for number, (path, count) in enumerate(calls):
        values, rest = rest[: count + 1], rest[count + 1 :]
        place = path if path not in [call.operation for call in found] else f"{path}.{number}"
        roles = ["input"] if count == 1 else ["lhs", "rhs"]
        inputs = tuple(name_of(value, f"{place}.{role}") for value, role in zip(values, roles, strict=False))
        found.append(Call(path, inputs, name_of(values[-1], f"{place}.output")))
    graph.outputs[:] = [value for value in dict.fromkeys(outputs) if not value.is_graph_input()]
    return found


def _narrow(graph: ir.Graph, model: nn.Module) -> None:
    """Give integers the type of their bits: those that modules hold wider, and what QuantizeLinear makes by them."""
    for path, module in model.named_modules():
        for buffer, (bits, signed) in getattr(module, "narrow", {}).items():
            value = graph.initializers.get(f"{WITHIN}{path}.{buffer}")
            if value is not None and value.const_value is not None:
                kind = INTEGERS[bits, signed]
                value.const_value = ir.tensor(value.const_value.numpy(), dtype=kind, name=value.name)
                value.dtype = kind
    for node in graph:
        if node.op_type == "QuantizeLinear" and (zero_point := node.inputs[2]) is not None:
            node.outputs[0].type = zero_point.type


def _tidy(model: ir.Model) -> None:
    """Name nodes by the module that they come from and weights as the model does, and drop what else tracing noted."""
    counts: Counter[str] = Counter()
    for node in model.graph:
        scopes = json.loads(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]").replace("'", '"'))
        name = f"{scopes[-2].removeprefix(WITHIN) if len(scopes) > 2 else ''}/{node.op_type}"
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"
    for value in list(model.graph.initializers.values()):
        value.name = str(value.name).removeprefix(WITHIN)
    ClearMetadataAndDocStringPass()(model)


def _keep_integers(node: ir.Node) -> bool | None:
    """Fold nothing that comes from a weight's integers."""
    integers = [v for v in node.inputs if v is not None and v.is_initializer() and str(v.name).endswith(".codes")]
    return False if integers else None
