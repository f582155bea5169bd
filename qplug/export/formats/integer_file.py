"""A run as ONNX files for ONNX Runtime on a CPU: in integers where it executes them, and without quantizers."""

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

OPSET = 20
"""The first in which Gelu is one operator; from 21 on ONNX Runtime 1.32 fails where it moves signed integers."""


def integer_file(planned: LoadedRun, saturating: bool = False) -> OnnxFile:
    """The plan, its products of 8-bit integers written out as ONNX Runtime executes them fastest.

    Attention from ``qkv`` to its second product is one piece, so its operations are ``joined`` and not among the calls.
    """
    example = planned.preprocessing.example()
    form = Integers(widths(OPSET), readers(planned.model, planned.plan, example), saturating)
    lowered = lower(planned.model, planned.plan, form)
    joined = integer_heads(lowered, planned.plan)
    file = onnx_file(lowered, planned.plan, example, OPSET)
    if not saturating:
        choose_by_processor(file.model)
    return replace(file, joined=joined)


def float_file(planned: LoadedRun) -> OnnxFile:
    """The model that a run quantized, without quantizers; its weights are the quantized ones, in float32."""
    return onnx_file(lower(planned.model, Plan(), Qdq()), Plan(), planned.preprocessing.example(), OPSET)
