"""Two forms of a file's byte products, of which it chooses the one that its processor computes exactly.

On x86 with VNNI, ONNX Runtime multiplies unsigned by signed bytes fastest, and exactly. Without VNNI such products
saturate, and products of two unsigned bytes are exact. So the file multiplies the largest bytes first and compares
the result. All of this is constant. When the runtime loads the file, it computes this probe by the kernel of its own
processor, keeps one branch and folds the weight into that branch's form. A call of the loaded file costs nothing more.
A model that the runtime saves after it has optimized the file holds one branch, and is for such processors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qplug.export.formats.qdq import SHIFT, saturates

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

PREFIX = "choice."
"""What the names of the probe's values begin with."""
EXACT = f"{PREFIX}exact"
EXPECTED = f"{PREFIX}expected"
DEPTH = 8
"""Products that the probe adds up: enough for every kernel to add some in pairs."""


def choose_by_processor(model: onnx.ModelProto) -> None:
    """Put every product that may saturate into a branch, in place.

    These are MatMulIntegers of a constant weight in signed bytes, and what reads DequantizeLinear of signed bytes that
    are no constants: the right operands of attention's matmuls.
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
    """The node as it is, and in unsigned bytes; ``None`` where no product of it can saturate."""
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
    """Nodes that move signed bytes by ``SHIFT`` to unsigned ones, and what their result is called."""
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
    """An If with the node's output, named as the node is."""
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
    """Nodes whose last gives ``EXACT``: whether products of the largest bytes are what they should be."""
    import onnx

    values: dict[str, NDArray[Any]] = {
        f"{PREFIX}left": np.full((DEPTH, DEPTH), 255, np.uint8),
        f"{PREFIX}right": np.full((DEPTH, DEPTH), 127, np.int8),
        EXPECTED: np.array(DEPTH * 255 * 127, np.int32),
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
