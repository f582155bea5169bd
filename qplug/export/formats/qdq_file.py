"""The format ``onnx-qdq``: uniform quantizers as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qplug.export.formats.graph import widths
from qplug.export.formats.lowering import lower, readers
from qplug.export.formats.onnx_file import OnnxFile, onnx_file, opset_of
from qplug.export.formats.qdq import Qdq

if TYPE_CHECKING:
    from qplug.pipeline.load_run import LoadedRun


def qdq_file(planned: LoadedRun, saturating: bool = False) -> OnnxFile:
    """A run as a file of the format ``onnx-qdq``. Quantizers that are not uniform become plain operators."""
    opset, example = opset_of(planned.plan), planned.preprocessing.example()
    form = Qdq(widths(opset), readers(planned.model, planned.plan, example), saturating)
    return onnx_file(lower(planned.model, planned.plan, form), planned.plan, example, opset)
