"""An ONNX file in memory, which every ONNX format makes from a lowered model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from qplug.core.version import __version__
from qplug.export.calls import Call
from qplug.export.formats.graph import OPSET, OPSET_2_BITS, build, only_logits
from qplug.export.formats.lowering import float_weights

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

    from qplug.quantization.plan import Plan


@dataclass
class OnnxFile:
    """See ``ExportedFile``."""

    model: onnx.ModelProto
    calls: list[Call]
    float_weights: list[str]
    joined: dict[str, list[str]]

    def content(self, metadata: Mapping[str, str]) -> bytes:
        """The file's bytes, after ``onnx.checker`` has accepted the model."""
        import onnx

        del self.model.metadata_props[:]
        onnx.helper.set_model_props(self.model, dict(metadata))
        onnx.checker.check_model(self.model, full_check=True)
        content: bytes = self.model.SerializeToString(deterministic=True)
        return content


def opset_of(plan: Plan) -> int:
    """The lowest opset whose QuantizeLinear has the plan's bit widths: 21, or 25 for 2 bits."""
    return OPSET_2_BITS if any(decision.quantizer.bits <= 2 for decision in plan) else OPSET


def onnx_file(
    lowered: nn.Module, plan: Plan, example: Tensor, opset: int, functions: Sequence[ir.Function] = ()
) -> OnnxFile:
    """A lowered model as an ONNX file.

    Args:
        lowered: model whose operations ``plan`` quantizes, from ``lower``.
        plan: of the run.
        example: a batch of one.
        opset: version of ONNX's operators.
        functions: operators that the file defines itself.
    """
    model, calls = build(lowered, plan.modules(), example, opset)
    only_logits(model)
    model.producer_name, model.producer_version = "qplug", __version__
    model.functions.update({function.identifier(): function for function in functions})
    return OnnxFile(ir.to_proto(model), calls, float_weights(lowered, plan), {})
