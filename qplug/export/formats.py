"""The formats that a run can be exported to, and what of a run each file says in its metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
    from torch import nn

    from qplug.export.graph import Call
    from qplug.load import Planned


OPSET = 20
"""The first in which Gelu is one operator. From 21 on ONNX Runtime 1.32 fails where it moves signed integers."""


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


def export_integers(planned: Planned) -> Exported:
    """As ``export_onnx``, with products of 8-bit integers written out as ONNX Runtime executes them fastest. Opset 20.

    Attention's first product is part of what computes its operands, so neither it nor ``qkv`` is among the calls.
    """
    from qplug.export.heads import integer_heads
    from qplug.export.integers import Integers
    from qplug.export.lower import lower

    return _built(integer_heads(lower(planned.model, planned.plan, Integers()), planned.plan), planned)


def export_float(planned: Planned) -> Exported:
    """The model that a run quantised, without quantizers: its weights are the quantised ones. Opset 20."""
    from qplug.export.lower import lower
    from qplug.export.qdq import Qdq
    from qplug.plan import Plan

    return _built(lower(planned.model, Plan(), Qdq()), planned, ())


def _built(lowered: nn.Module, planned: Planned, operations: Sequence[str] | None = None) -> Exported:
    import onnx_ir as ir

    from qplug.export.graph import build, only_logits

    watched = planned.plan.modules() if operations is None else operations
    model, calls = build(lowered, watched, planned.preprocessing.example(), OPSET)
    only_logits(model)
    return Exported(ir.to_proto(model), calls)
