"""What executes exported files: logits, and on request what every planned operation read and gave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from qplug.export.trace import INPUT, LOGITS, Call

if TYPE_CHECKING:
    import onnx


class Runtime(Protocol):
    """Executes one file on the CPU."""

    calls: Sequence[Call]

    def logits(self, x: Tensor) -> Tensor:
        """A batch → its logits, by the file as it is."""

    def watch(self, x: Tensor) -> Iterator[dict[str, Tensor]]:
        """A batch → every value that a call names, and the logits, for each way in which the runtime executes it."""


class OnnxRuntime:
    """ONNX Runtime with its default optimisations, as many threads as torch has.

    What it is asked to show of a file cannot be fused away, so it watches in sessions of their own: one optimised, as
    the file will run, and one that executes every operator as it is. A wrong axis, say, is lost where the runtime fuses
    a matmul with its dequantised weight, and another runtime would meet it.
    """

    def __init__(self, model: onnx.ModelProto, calls: Sequence[Call]) -> None:
        self.calls = calls
        self._model = model
        self._session = _session(model.SerializeToString())
        self._watching: list[Any] = []

    def logits(self, x: Tensor) -> Tensor:
        """See ``Runtime``."""
        return torch.from_numpy(self._session.run([LOGITS], {INPUT: x.numpy()})[0])

    def watch(self, x: Tensor) -> Iterator[dict[str, Tensor]]:
        """See ``Runtime``."""
        names = sorted({name for call in self.calls for name in (*call.inputs, call.output)} - {INPUT, LOGITS})
        if not self._watching:
            shown = _showing(self._model, names)
            self._watching = [_session(shown, optimised) for optimised in (True, False)]
        for session in self._watching:
            found = session.run([*names, LOGITS], {INPUT: x.numpy()})
            yield {INPUT: x} | {n: torch.from_numpy(v) for n, v in zip([*names, LOGITS], found, strict=True)}


def _session(content: bytes, optimised: bool = True) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _showing(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    import onnx

    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    known = {value.name: value for value in shown.graph.value_info}
    shown.graph.output.extend(known[name] for name in names)
    content: bytes = shown.SerializeToString()
    return content
