"""The format ``onnx-integer``: integer products for ONNX Runtime on a CPU. Also a run's file without quantizers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qplug.export.formats.choice import choose_by_processor
from qplug.export.formats.graph import widths
from qplug.export.formats.integer_attention import integer_heads
from qplug.export.formats.integers import Integers
from qplug.export.formats.lowering import lower, readers
from qplug.export.formats.onnx_file import OnnxFile, onnx_file
from qplug.export.formats.qdq import Qdq
from qplug.quantization.plan import Plan

if TYPE_CHECKING:
    from qplug.pipeline.load_run import LoadedRun

INTEGER_OPSET = 20
"""The first opset with Gelu as one operator. From opset 21 on, ONNX Runtime 1.32 fails to move signed integers."""


def integer_file(planned: LoadedRun, saturating: bool = False) -> OnnxFile:
    """A run as a file of the format ``onnx-integer``.

    Attention from ``qkv`` to its second product is merged. These operations are ``joined``, and have no calls.
    """
    example = planned.preprocessing.example()
    form = Integers(widths(INTEGER_OPSET), readers(planned.model, planned.plan, example), saturating)
    lowered = lower(planned.model, planned.plan, form)
    joined = integer_heads(lowered, planned.plan)
    file = onnx_file(lowered, planned.plan, example, INTEGER_OPSET)
    if not saturating:
        choose_by_processor(file.model)
    return replace(file, joined=joined)


def float_file(planned: LoadedRun) -> OnnxFile:
    """A run's model without quantizers. Its weights have their quantized values, in float32."""
    return onnx_file(lower(planned.model, Plan(), Qdq()), Plan(), planned.preprocessing.example(), INTEGER_OPSET)
