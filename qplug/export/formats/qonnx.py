"""The format ``onnx-qonnx``: uniform quantizers of any width as QONNX's operator Quant, which the file defines.

Quant(x, scale, zeropt, bitwidth) = (clamp(round(x/scale + zeropt), l, h) − zeropt)·scale, l and h those of ``bitwidth``
bits, signed or not (https://github.com/fastmachinelearning/qonnx, without ``narrow``). Quant maps float values to float
values. Weights are therefore in float32 in such a file, as QONNX's tools expect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from qplug.export.formats.fallback import DecodedWeight, plain_weight, traced
from qplug.export.formats.lowering import Format, lower
from qplug.export.formats.onnx_file import OnnxFile, onnx_file, opset_of
from qplug.quantization.plan import Decision
from qplug.quantization.quantizers import UniformQuantizer

if TYPE_CHECKING:
    from qplug.pipeline.load_run import LoadedRun

DOMAIN = "qonnx.custom_op.general"


class Quant(nn.Module):
    """A uniform quantizer as Quant."""

    scale: Tensor
    zero_point: Tensor
    bits: Tensor

    def __init__(self, quantizer: UniformQuantizer, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed
        scale = quantizer.scale.cpu()
        zero = (quantizer.zero_point.cpu() + torch.zeros_like(scale)) if scale.dim() else quantizer.zero_point.cpu()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero)
        self.register_buffer("bits", torch.tensor(float(quantizer.bits)))
        self.attributes: dict[str, Any] = {"signed": int(quantizer.signed), "narrow": 0, "rounding_mode": "ROUND"}

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize."""
        inputs = (x, self.scale, self.zero_point, self.bits)
        values = symbolic(f"{DOMAIN}::Quant", inputs, self.attributes, dtype=x.dtype, shape=x.shape, version=1)
        return values.transpose(-2, -1) if self.transposed else values


class QuantWeight(nn.Module):
    """A weight's quantized values in float32, and Quant, which does not change them but records the quantizer."""

    dtype = torch.float32  # forwards of transformers read it, as of a Parameter

    values: Tensor

    def __init__(self, quantizer: UniformQuantizer, weight: Tensor, transposed: bool) -> None:
        super().__init__()
        self.register_buffer("values", quantizer.infer(weight))
        self.quant = Quant(quantizer, transposed)

    def forward(self) -> Tensor:
        """The values, float32."""
        values: Tensor = self.quant(self.values)
        return values


class Qonnx(Format):
    """Uniform quantizers as Quant, others as plain operators, with their weights as codes."""

    def activation(self, decision: Decision, transposed: bool) -> nn.Module:
        """See ``Format``."""
        quantizer = decision.quantizer
        if type(quantizer) is UniformQuantizer:
            return Quant(quantizer, transposed)
        return traced(quantizer, transposed)

    def weight(self, decision: Decision, weight: Tensor, transposed: bool, beside: nn.Module | None) -> nn.Module:
        """See ``Format``."""
        quantizer = decision.quantizer
        if type(quantizer) is UniformQuantizer:
            return QuantWeight(quantizer, weight, transposed)
        return plain_weight(decision, weight, transposed, DecodedWeight)


def qonnx_file(planned: LoadedRun) -> OnnxFile:
    """A run as a file of the format ``onnx-qonnx``. Quantizers that are not uniform become plain operators."""
    opset, example = opset_of(planned.plan), planned.preprocessing.example()
    lowered = lower(planned.model, planned.plan, Qonnx())
    return onnx_file(lowered, planned.plan, example, opset, [definition(opset)])


def definition(opset: int) -> ir.Function:
    """Quant in ONNX's own operators, so that any runtime executes the file.

    It supports neither ``narrow`` nor other rounding modes.
    """
    from onnx import helper

    def number(name: str, value: float) -> object:
        return helper.make_node("Constant", [], [name], value_float=value)

    signed = helper.make_node("Constant", [], ["signed_int"])
    reference = helper.make_attribute("value_int", 0)
    reference.ClearField("i")
    reference.ref_attr_name = "signed"
    signed.attribute.append(reference)
    cast = helper.make_node("Cast", ["signed_int"], ["signed"], to=1)
    steps = [
        ("Sub", ["bitwidth", "signed"], "magnitude"),
        ("Pow", ["two", "magnitude"], "count"),
        ("Sub", ["count", "one"], "high"),
        ("Mul", ["count", "signed"], "below"),
        ("Neg", ["below"], "low"),
        ("Div", ["x", "scale"], "quotient"),
        ("Add", ["quotient", "zeropt"], "place"),
        ("Round", ["place"], "rounded"),
        ("Max", ["rounded", "low"], "above"),
        ("Min", ["above", "high"], "code"),
        ("Sub", ["code", "zeropt"], "integer"),
        ("Mul", ["integer", "scale"], "y"),
    ]
    nodes = [number("one", 1.0), number("two", 2.0), signed, cast]
    nodes += [helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps]
    proto = helper.make_function(
        DOMAIN,
        "Quant",
        ["x", "scale", "zeropt", "bitwidth"],
        ["y"],
        nodes,
        [helper.make_opsetid("", opset)],
        attributes=["signed", "narrow", "rounding_mode"],
    )
    return ir.serde.deserialize_function(proto)
