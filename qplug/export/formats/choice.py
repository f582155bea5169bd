"""Two forms of a file's byte products. The file chooses the form that its processor computes exactly.

On x86 with VNNI, ONNX Runtime multiplies unsigned by signed bytes fastest, and exactly. Without VNNI such products
saturate, and products of two unsigned bytes are exact. The file therefore multiplies the largest bytes first and
compares the result.

This probe is constant. When the runtime loads the file, it computes the probe with the kernel of its own processor. It
keeps one branch, and folds the weight into that branch's form. Calls of the loaded file take no additional time. A
model that the runtime saves after optimization holds one branch, and is for such processors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qplug.export.formats.affine import SHIFT, saturates

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

PREFIX = "choice."
"""Prefix of the names of the probe's values."""
EXACT = f"{PREFIX}exact"
EXPECTED = f"{PREFIX}expected"
PROBE_DEPTH = 8
"""Number of products in each sum of the probe, enough for every kernel to add some in pairs."""


def choose_by_processor(model: onnx.ModelProto) -> None:
    """Give every product that may saturate a branch for each form, in place.

    These are MatMulIntegers of a constant weight in signed bytes, and products of a DequantizeLinear whose signed bytes
    are not constant. The latter are the right operands of attention's matmuls.
    """
    constants = {one.name: one for one in model.graph.initializer}
    nodes, found = [], False
    for node in model.graph.node:
        branches = _branches(node, constants)
        nodes.append(_chosen(node, *branches) if branches else node)
        found = found or branches is not None
    if not found:
        return
    del model.graph.node[:]
    model.graph.node.extend([*_probe(model.graph), *nodes])


def _branches(node: onnx.NodeProto, constants: dict[str, Any]) -> tuple[list[Any], list[Any]] | None:
    """The nodes of both forms, signed and unsigned bytes; ``None`` if no product of ``node`` can saturate."""
    import onnx

    if node.op_type == "MatMulInteger" and len(node.input) == 3 and node.input[1] in constants:
        codes = onnx.numpy_helper.to_array(constants[node.input[1]])
        if codes.dtype != np.int8 or not saturates(255, torch.from_numpy(codes.astype(np.int32))):
            return None
        shifted, name = _shifted(node.input[1], node.output[0])
        return [node], [*shifted, _like(node, [node.input[0], name, node.input[2], f"{PREFIX}shift"])]
    if node.op_type == "DequantizeLinear" and node.input[0] not in constants:
        zero_point = onnx.numpy_helper.to_array(constants[node.input[2]])
        if zero_point.dtype != np.int8:
            return None
        shifted, name = _shifted(node.input[0], node.output[0])
        zero, zero_name = _shifted(node.input[2], f"{node.output[0]}.zero")
        return [node], [*shifted, *zero, _like(node, [name, node.input[1], zero_name])]
    return None


def _shifted(name: str, prefix: str) -> tuple[list[Any], str]:
    """Nodes that add ``SHIFT`` to signed bytes, which makes them unsigned, and the name of their result."""
    import onnx

    wide, moved, out = (f"{prefix}.{part}" for part in ("wide", "moved", "bytes"))
    nodes = [
        onnx.helper.make_node("Cast", [name], [wide], to=onnx.TensorProto.INT32),
        onnx.helper.make_node("Add", [wide, f"{PREFIX}shift.wide"], [moved]),
        onnx.helper.make_node("Cast", [moved], [out], to=onnx.TensorProto.UINT8),
    ]
    return nodes, out


def _like(node: onnx.NodeProto, inputs: Sequence[str]) -> onnx.NodeProto:
    import onnx

    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.input[:] = inputs
    return made


def _chosen(node: onnx.NodeProto, exact: list[Any], other: list[Any]) -> onnx.NodeProto:
    """An If with the output and the name of ``node``."""
    import onnx

    (output,) = node.output
    kind = onnx.TensorProto.INT32 if node.op_type == "MatMulInteger" else onnx.TensorProto.FLOAT
    graphs = []
    for form, nodes in (("signed", exact), ("unsigned", other)):
        nodes = [_like(one, one.input) for one in nodes]
        nodes[-1].output[:] = [f"{output}.{form}"]
        gives = onnx.helper.make_tensor_value_info(f"{output}.{form}", kind, None)
        graphs.append(onnx.helper.make_graph(nodes, form, [], [gives]))
    return onnx.helper.make_node(
        "If", [EXACT], [output], name=f"{node.name}/If", then_branch=graphs[0], else_branch=graphs[1]
    )


def _probe(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes that compute ``EXACT``: whether the products of the largest bytes are exact."""
    import onnx

    values: dict[str, NDArray[Any]] = {
        f"{PREFIX}left": np.full((PROBE_DEPTH, PROBE_DEPTH), 255, np.uint8),
        f"{PREFIX}right": np.full((PROBE_DEPTH, PROBE_DEPTH), 127, np.int8),
        EXPECTED: np.array(PROBE_DEPTH * 255 * 127, np.int32),
        f"{PREFIX}shift": np.array(SHIFT, np.uint8),
        f"{PREFIX}shift.wide": np.array(SHIFT, np.int32),
    }
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in values.items())
    products, largest = f"{PREFIX}products", f"{PREFIX}largest"
    return [
        onnx.helper.make_node("MatMulInteger", [f"{PREFIX}left", f"{PREFIX}right"], [products]),
        onnx.helper.make_node("ReduceMax", [products], [largest], keepdims=0),
        onnx.helper.make_node("Equal", [largest, EXPECTED], [EXACT]),
    ]
