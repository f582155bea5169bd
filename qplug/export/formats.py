"""The formats that a run can be exported to, and what of a run each file says in its metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from qplug.export.graph import Call
    from qplug.load import Planned


@dataclass
class Exported:
    """A file before it is written.

    Attributes:
        model: gives the logits.
        calls: where each call of a planned operation stands in it.
    """

    model: onnx.ModelProto
    calls: list[Call]


def export_onnx(planned: Planned) -> Exported:
    """The plan as QuantizeLinear and DequantizeLinear, everything else as plain operators of ONNX.

    Opset 21, or 25 where something has 2 bits.
    """
    import onnx_ir as ir

    from qplug.export.graph import build, only_logits
    from qplug.export.lower import lower
    from qplug.export.qdq import Qdq

    two = any(decision.quantizer.bits <= 2 for decision in planned.plan)
    form, opset = (Qdq((2, 4, 8, 16)), 25) if two else (Qdq(), 21)
    lowered = lower(planned.model, planned.plan, form)
    model, calls = build(lowered, planned.plan.modules(), planned.preprocessing.example(), opset)
    only_logits(model)
    return Exported(ir.to_proto(model), calls)
