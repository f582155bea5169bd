"""What executes exported files: logits, and on request what every planned operation read and gave."""

from __future__ import annotations

from collections.abc import Sequence
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

    def watch(self, x: Tensor) -> dict[str, Tensor]:
        """A batch → every value that a call names, and the logits."""


class OnnxRuntime:
    """ONNX Runtime with its default optimisations, as many threads as torch has.

    What it is asked to show of a file cannot be fused away, so it watches in a session of its own.
    """

    def __init__(self, model: onnx.ModelProto, calls: Sequence[Call]) -> None:
        self.calls = calls
        self._model = model
        self._session = _session(model.SerializeToString())
        self._watching: Any = None

    def logits(self, x: Tensor) -> Tensor:
        """See ``Runtime``."""
        return torch.from_numpy(self._session.run([LOGITS], {INPUT: x.numpy()})[0])

    def watch(self, x: Tensor) -> dict[str, Tensor]:
        """See ``Runtime``."""
        names = sorted({name for call in self.calls for name in (*call.inputs, call.output)} - {INPUT, LOGITS})
        if self._watching is None:
            self._watching = _session(_showing(self._model, names))
        found = self._watching.run([*names, LOGITS], {INPUT: x.numpy()})
        return {INPUT: x} | {n: torch.from_numpy(v) for n, v in zip([*names, LOGITS], found, strict=True)}


def _session(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _showing(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    import onnx

    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    known = {value.name: value for value in shown.graph.value_info}
    shown.graph.output.extend(known[name] for name in names)
    content: bytes = shown.SerializeToString()
    return content
