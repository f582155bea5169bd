"""ONNX Runtime executes ONNX files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qplug.export.calls import INPUT, LOGITS, Call

if TYPE_CHECKING:
    import onnx

    from qplug.export.exported_file import ExportedFile

NEGATED = "negated."
"""Prefix of an output that is returned with its sign changed."""
FUSED_OUTPUTS = ((0, 2), (1, 2), (5, 6))
"""One session each: the first operation whose output it returns, and the distance to the next one."""


class OnnxRuntime:
    """ONNX Runtime with its default optimizations and as many threads as torch.

    The runtime does not fuse a value away that it must return. Each operation's values are therefore read in sessions
    apart from the file's own: one optimized, and one that executes every operator unchanged. The second finds errors
    that fusion hides. A wrong axis, for example, is lost if the runtime fuses a matmul with its dequantized weight.

    Kernels that are fused across operations run in further sessions. Two return every second output. One returns every
    sixth, about one per transformer block.
    """

    def __init__(self, model: onnx.ModelProto, calls: Sequence[Call]) -> None:
        self.calls = calls
        self._model = model
        self._session = _session(model.SerializeToString())
        self._watching: list[Any] = []
        self._fused: list[tuple[list[str], Any]] = []

    def logits(self, x: Tensor) -> Tensor:
        """See ``Runtime``."""
        return torch.from_numpy(self._session.run([LOGITS], {INPUT: x.numpy()})[0])

    def watch(self, x: Tensor) -> Iterator[dict[str, Tensor]]:
        """See ``Runtime``."""
        names = sorted({name for call in self.calls for name in (*call.inputs, call.output)} - {INPUT, LOGITS})
        if not self._watching:
            model = _with_outputs(self._model, names)
            self._watching = [_session(model, optimized) for optimized in (True, False)]
        for session in self._watching:
            yield _values(session, names, x)

    def fused(self, x: Tensor) -> Iterator[dict[str, Tensor]]:
        """See ``Runtime``."""
        outputs = [name for name in dict.fromkeys(call.output for call in self.calls) if name != LOGITS]
        if not self._fused:
            chosen = [outputs[first::distance] for first, distance in FUSED_OUTPUTS]
            self._fused = [(names, _session(_with_negated_outputs(self._model, names))) for names in chosen]
        for names, session in self._fused:
            found = _values(session, [NEGATED + name for name in names], x)
            yield {name.removeprefix(NEGATED): -v if name.startswith(NEGATED) else v for name, v in found.items()}


def open_file(file: ExportedFile) -> OnnxRuntime:
    """A session that executes the file's graph."""
    return OnnxRuntime(file.model, file.calls)


def _session(content: bytes, optimized: bool = True) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # an arena never shrinks, and there is one per session
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _values(session: Any, names: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """The input, the logits and the outputs ``names``."""
    outputs = [*names, LOGITS]
    found = session.run(outputs, {INPUT: x.numpy()})
    return {INPUT: x} | {name: torch.from_numpy(value) for name, value in zip(outputs, found, strict=True)}


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """A copy of the model that also returns the values ``names``."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name: value for value in copy.graph.value_info}
    copy.graph.output.extend(known[name] for name in names)
    content: bytes = copy.SerializeToString()
    return content


def _with_negated_outputs(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """A copy of the model that also returns the values ``names`` with changed signs, under ``NEGATED`` names.

    The runtime can move an operand's quantizer through a transpose, up to the output that the quantizer reads.
    It would then return that output quantized. It does not move a quantizer past an output that has another reader.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name: value for value in copy.graph.value_info}
    for name in names:
        copy.graph.node.append(onnx.helper.make_node("Neg", [name], [NEGATED + name]))
        copy.graph.output.append(known[name])
        copy.graph.output[-1].name = NEGATED + name
    content: bytes = copy.SerializeToString()
    return content
