"""The deployment recipe on the embedded model and data, and files in ONNX Runtime."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from paths import RECIPES
from torch import Tensor, nn

from qplug import load_recipe, run
from qplug.export.calls import INPUT, LOGITS
from qplug.export.formats.choice import EXPECTED, choose_by_processor
from qplug.export.formats.onnx_file import onnx_file
from qplug.export.speed import session
from qplug.quantization.plan import Plan

RECIPE = RECIPES / "deploy_int8.yaml"
DIGITS = (
    "model={source: zoo, name: vit_digits}",
    "data.calibration={source: digits, split: train, images: 16}",
    "data.evaluation={source: digits, split: test, images: 100}",
    "quantize.overrides=[]",
)


def digits_run(folder: Path, *more: str) -> Path:
    """A run of the recipe on the digits, in ``folder``."""
    run(load_recipe(RECIPE, [*DIGITS, *more]), out=folder)
    return folder


def exported(module: nn.Module, x: Tensor) -> onnx.ModelProto:
    """A lowered module as a file of the format ``onnx-integer``."""
    model = onnx_file(module.eval(), Plan(), x[:1], 20).model
    choose_by_processor(model)
    return model


def scaled(model: onnx.ModelProto, node: str, position: int, factor: float) -> onnx.ModelProto:
    """A copy whose ``node`` has a constant input of its own at ``position``, ``factor`` times as large."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    branches = [part.g for one in changed.graph.node for part in one.attribute if part.HasField("g")]
    found = [one for graph in (changed.graph, *branches) for one in graph.node if one.name == node]
    (name,) = {one.input[position] for one in found}  # of one node, or of both its forms
    (shared,) = (one for one in changed.graph.initializer if one.name == name)
    values, own = numpy_helper.to_array(shared), f"own.{node}.{position}"
    changed.graph.initializer.append(numpy_helper.from_array((values * factor).astype(values.dtype), own))
    for one in found:
        one.input[position] = own
    return changed


def executed(model: onnx.ModelProto, x: Tensor) -> Tensor:
    """What ONNX Runtime gives."""
    return torch.from_numpy(session(model, 1).run([LOGITS], {INPUT: x.numpy()})[0])


def unsigned(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that chooses unsigned bytes, as on x86 without VNNI, whatever this machine's processor is."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    (expected,) = (one for one in changed.graph.initializer if one.name == EXPECTED)
    expected.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(expected) + 1, EXPECTED))
    return changed


@dataclass(frozen=True)
class Product:
    """A node of the optimized graph that multiplies bytes.

    Attributes:
        operator: its type.
        types: of both operands, as ONNX names them.
        largest: magnitude of the right operand's integers where they are constant, else that of their type.
    """

    operator: str
    types: tuple[str, str]
    largest: int

    @property
    def saturates(self) -> bool:
        """Whether x86 without VNNI may give something else."""
        return self.types == ("UINT8", "INT8") and 2 * 255 * self.largest > 2**15 - 1


OPERANDS = {
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearMatMul": (0, 3),
    "QLinearConv": (0, 3),
    "QGemm": (0, 3),
}
"""Where the operands stand in the operators of ONNX Runtime that multiply bytes."""


def products(model: onnx.ModelProto) -> list[Product]:
    """What multiplies bytes once ONNX Runtime has optimized ``model`` for this machine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        session(model, 1, optimized=path)
        graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    constants = {one.name: one for one in graph.initializer}
    types = {one.name: one.type.tensor_type.elem_type for one in (*graph.value_info, *graph.input)}
    types |= {name: one.data_type for name, one in constants.items()}
    for node in graph.node:  # shapes of the runtime's own operators are unknown to onnx
        if node.op_type == "QuantizeLinear":
            types[node.output[0]] = types[node.input[2]]
        elif node.op_type in ("Transpose", "Reshape", "Clip", "Gather", "Squeeze", "Unsqueeze", "Slice", "Split"):
            types |= {name: types[node.input[0]] for name in node.output if node.input[0] in types}
        elif node.op_type in ("QLinearMatMul", "QLinearConv"):
            types[node.output[0]] = types[node.input[7]]
    found = []
    for node in graph.node:
        if node.op_type in OPERANDS:
            left, right = (node.input[place] for place in OPERANDS[node.op_type])
            kinds = tuple(onnx.TensorProto.DataType.Name(types[name]) for name in (left, right))
            codes = numpy_helper.to_array(constants[right]).astype(int) if right in constants else np.array(128)
            found.append(Product(node.op_type, (kinds[0], kinds[1]), int(abs(codes).max())))
    return found
