"""A lowered model as an ONNX graph: traced, simplified, with named values and the narrowest integers of the format."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn

from qplug.export.calls import INPUT, LOGITS, Call
from qplug.export.formats.trace import named, trace

OPSET, OPSET_2_BITS = 21, 25
"""The first opset whose QuantizeLinear has integers of 4 and 16 bits, and the first with 2 bits."""
LARGEST_FOLDED = 1024
"""Largest number of elements of a constant that is computed in advance.

A table of 2^bits values per row can be larger than the codes of its weight.
"""
MODEL_PREFIX = "model."
"""Prefix of the names in a watched model."""
ONNX_INTEGERS = {
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


def widths(opset: int) -> tuple[int, ...]:
    """Bit widths of the integers of QuantizeLinear and DequantizeLinear, ascending."""
    if opset < OPSET:
        return (8,)
    return (2, 4, 8, 16) if opset >= OPSET_2_BITS else (4, 8, 16)


def build(model: nn.Module, operations: Sequence[str], example: Tensor, opset: int) -> tuple[ir.Model, list[Call]]:
    """Trace a lowered model.

    Args:
        model: from ``lower``.
        operations: of the plan; each call becomes a ``Call``.
        example: a batch of one. The graph takes batches of any size.
        opset: version of ONNX's operators.

    Returns:
        The model, whose outputs are the logits and the values of every call, and the calls in order.
    """
    program, of = trace(model, operations, example)
    with torch.no_grad():  # optimizations would fold weights back to float
        exported = torch.onnx.export(program, opset_version=opset, optimize=False, verbose=False)
    assert exported is not None
    traced = exported.model
    calls = _name(traced.graph, of)
    _narrow(traced.graph, model, opset)
    optimize_ir(traced, should_fold=_keep_integers, output_size_limit=LARGEST_FOLDED)
    _tidy(traced)
    return traced, calls


def only_logits(model: ir.Model) -> None:
    """Remove every output but the logits."""
    while len(model.graph.outputs) > 1:  # deleting a slice would not update the values
        model.graph.outputs.pop()


def _name(graph: ir.Graph, calls: Sequence[tuple[str, int]]) -> list[Call]:
    """Name the graph's inputs and outputs, and keep each output once."""
    outputs = [_copied(value) for value in graph.outputs]
    names = {id(graph.inputs[0]): INPUT, id(outputs[0]): LOGITS}
    found, _ = named(calls, outputs[1:], names)
    for value in (graph.inputs[0], *outputs):
        value.name = names[id(value)]
    graph.outputs[:] = [value for value in dict.fromkeys(outputs) if not value.is_graph_input()]
    return found


def _copied(value: ir.Value) -> ir.Value:
    """The source of a copy that ``Watched`` made. A graph needs no copies, because it overwrites nothing."""
    producer = value.producer()
    if producer is None or producer.op_type != "Identity" or producer.inputs[0] is None:
        return value
    return producer.inputs[0]


def _narrow(graph: ir.Graph, model: nn.Module, opset: int) -> None:
    """Narrow the integers that modules hold wider to a type of their bits, and the outputs of QuantizeLinear too."""
    held = (*widths(opset), 16)  # every opset has tensors of 16 bits, even if its QuantizeLinear has not
    for path, module in model.named_modules():
        for buffer, (bits, signed) in getattr(module, "narrow", {}).items():
            value = graph.initializers.get(f"{MODEL_PREFIX}{path}.{buffer}")
            if value is not None and value.const_value is not None:
                kind = ONNX_INTEGERS[next(width for width in held if width >= bits), signed]
                value.const_value = ir.tensor(value.const_value.numpy(), dtype=kind, name=value.name)
                value.dtype = kind
    for node in graph:
        if node.op_type == "QuantizeLinear" and (zero_point := node.inputs[2]) is not None:
            node.outputs[0].type = zero_point.type


def _tidy(model: ir.Model) -> None:
    """Name nodes after their modules and weights as in the model, and remove the other metadata of tracing."""
    counts: Counter[str] = Counter()
    for node in model.graph:
        scopes = json.loads(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]").replace("'", '"'))
        name = f"{scopes[-2].removeprefix(MODEL_PREFIX) if len(scopes) > 2 else ''}/{node.op_type}"
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"
    for value in list(model.graph.initializers.values()):
        value.name = str(value.name).removeprefix(MODEL_PREFIX)
    ClearMetadataAndDocStringPass()(model)


def _keep_integers(node: ir.Node) -> bool | None:
    """Do not fold the operators that read a weight's integers."""
    integers = [v for v in node.inputs if v is not None and v.is_initializer() and str(v.name).endswith(".codes")]
    return False if integers else None
