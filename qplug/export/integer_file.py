"""A run as ONNX models for ONNX Runtime on a CPU: in integers where it executes them, and without quantizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qplug.export.graph import build, only_logits
from qplug.export.heads import integer_heads
from qplug.export.integers import Integers
from qplug.export.lower import lower
from qplug.export.qdq import Qdq
from qplug.plan import Plan

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from qplug.export.graph import Call
    from qplug.load import Planned

OPSET, OPSET_QDQ = 20, 21
"""20: the first in which Gelu is one operator; from 21 on ONNX Runtime 1.32 fails where it moves signed integers."""


def integer_model(planned: Planned) -> tuple[onnx.ModelProto, list[Call]]:
    """The plan, its products of 8-bit integers written out as ONNX Runtime executes them fastest, and its calls.

    Attention's first product is part of what computes its operands, so neither it nor ``qkv`` is among the calls.
    """
    lowered = integer_heads(lower(planned.model, planned.plan, Integers()), planned.plan)
    return _model(lowered, planned, planned.plan.modules(), OPSET)


def qdq_model(planned: Planned) -> tuple[onnx.ModelProto, list[Call]]:
    """The plan as QuantizeLinear and DequantizeLinear, for comparison."""
    return _model(lower(planned.model, planned.plan, Qdq()), planned, planned.plan.modules(), OPSET_QDQ)


def float_model(planned: Planned) -> tuple[onnx.ModelProto, list[Call]]:
    """The model that a run quantised, without quantizers; its weights are the quantised ones, in float32."""
    return _model(lower(planned.model, Plan(), Qdq()), planned, (), OPSET)


def _model(
    lowered: nn.Module, planned: Planned, operations: Sequence[str], opset: int
) -> tuple[onnx.ModelProto, list[Call]]:
    import onnx_ir as ir

    model, calls = build(lowered, operations, planned.preprocessing.example(), opset)
    only_logits(model)
    model.producer_name = "qplug"
    return ir.to_proto(model), calls
