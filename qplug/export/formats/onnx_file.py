"""A run as an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from qplug.core.version import __version__
from qplug.export.calls import Call
from qplug.export.formats.graph import OPSET, OPSET_2_BITS, build, only_logits, widths
from qplug.export.formats.lowering import float_weights, lower, readers
from qplug.export.formats.qdq import Qdq
from qplug.export.formats.qonnx import Qonnx, definition
from qplug.export.runtimes import OnnxRuntime

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

    from qplug.pipeline.load_run import LoadedRun
    from qplug.quantization.plan import Plan


@dataclass
class OnnxFile:
    """A file before it is written.

    Attributes:
        model: gives the logits.
        calls: where each call of a planned operation stands in it.
        float_weights: quantized weights that it holds in float32, whose quantizers have no codes.
        joined: planned operations that are one with others in it and so have no call, by the operation that reads them.
    """

    model: onnx.ModelProto
    calls: list[Call]
    float_weights: list[str]
    joined: dict[str, list[str]]

    def runtime(self) -> OnnxRuntime:
        """What executes it."""
        return OnnxRuntime(self.model, self.calls)

    def content(self, metadata: Mapping[str, str]) -> bytes:
        """The file's bytes, checked by onnx."""
        import onnx

        del self.model.metadata_props[:]
        onnx.helper.set_model_props(self.model, dict(metadata))
        onnx.checker.check_model(self.model, full_check=True)
        content: bytes = self.model.SerializeToString(deterministic=True)
        return content


def qdq_file(planned: LoadedRun, saturating: bool = False) -> OnnxFile:
    """The plan as QuantizeLinear and DequantizeLinear, all else as plain operators; opset 21, or 25 for 2 bits."""
    opset = _opset(planned)
    example = planned.preprocessing.example()
    form = Qdq(widths(opset), readers(planned.model, planned.plan, example), saturating)
    return onnx_file(lower(planned.model, planned.plan, form), planned.plan, example, opset)


def qonnx_file(planned: LoadedRun) -> OnnxFile:
    """The plan as QONNX's Quant, which the file defines, all else as plain operators; opset 21, or 25 for 2 bits."""
    opset = _opset(planned)
    lowered = lower(planned.model, planned.plan, Qonnx())
    return onnx_file(lowered, planned.plan, planned.preprocessing.example(), opset, [definition(opset)])


def _opset(planned: LoadedRun) -> int:
    return OPSET_2_BITS if any(decision.quantizer.bits <= 2 for decision in planned.plan) else OPSET


def onnx_file(
    lowered: nn.Module, plan: Plan, example: Tensor, opset: int, functions: Sequence[ir.Function] = ()
) -> OnnxFile:
    """A model lowered by ``plan`` as a file; ``example`` is a batch of one, ``functions`` are what the file defines."""
    model, calls = build(lowered, plan.modules(), example, opset)
    only_logits(model)
    model.producer_name, model.producer_version = "qplug", __version__
    model.functions.update({function.identifier(): function for function in functions})
    return OnnxFile(ir.to_proto(model), calls, float_weights(lowered, plan), {})
