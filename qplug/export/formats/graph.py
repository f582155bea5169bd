"""A lowered model as an ONNX graph: traced, tidied, its integers as narrow as the format has them, its values named."""

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
"""The first whose QuantizeLinear has integers of 4 and 16 bits, and the first with integers of 2 bits."""
LARGEST_CONSTANT = 1024
"""Elements of what is computed beforehand: a table of 2^bits values a row can be larger than its weight's codes."""
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


def widths(opset: int) -> tuple[int, ...]:
    """Bits that the integers of QuantizeLinear and DequantizeLinear may have, ascending."""
    if opset < OPSET:
        return (8,)
    return (2, 4, 8, 16) if opset >= OPSET_2_BITS else (4, 8, 16)


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
    program, of = trace(model, operations, example)
    with torch.no_grad():  # without optimizations, which would fold weights back to float
        exported = torch.onnx.export(program, opset_version=opset, optimize=False, verbose=False)
    assert exported is not None
    traced = exported.model
    calls = _name(traced.graph, of)
    _narrow(traced.graph, model, opset)
    optimize_ir(traced, should_fold=_keep_integers, output_size_limit=LARGEST_CONSTANT)
    _tidy(traced)
    return traced, calls


def only_logits(model: ir.Model) -> None:
    """Let the model give its logits and nothing else."""
    while len(model.graph.outputs) > 1:  # a slice would be deleted without the values' knowing
        model.graph.outputs.pop()


def _name(graph: ir.Graph, calls: Sequence[tuple[str, int]]) -> list[Call]:
    """Name inputs and outputs, and list every output once."""
    outputs = [_copied(value) for value in graph.outputs]
    names = {id(graph.inputs[0]): INPUT, id(outputs[0]): LOGITS}
    found, _ = named(calls, outputs[1:], names)
    for value in (graph.inputs[0], *outputs):
        value.name = names[id(value)]
    graph.outputs[:] = [value for value in dict.fromkeys(outputs) if not value.is_graph_input()]
    return found


def _copied(value: ir.Value) -> ir.Value:
    """What a copy was made of, as watching makes them: in a graph nothing is written over."""
    producer = value.producer()
    if producer is None or producer.op_type != "Identity" or producer.inputs[0] is None:
        return value
    return producer.inputs[0]


def _narrow(graph: ir.Graph, model: nn.Module, opset: int) -> None:
    """Give integers a type of their bits: those that modules hold wider, and what QuantizeLinear makes by them."""
    held = (*widths(opset), 16)  # what every opset holds, if not for QuantizeLinear
    for path, module in model.named_modules():
        for buffer, (bits, signed) in getattr(module, "narrow", {}).items():
            value = graph.initializers.get(f"{WITHIN}{path}.{buffer}")
            if value is not None and value.const_value is not None:
                kind = INTEGERS[next(width for width in held if width >= bits), signed]
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
