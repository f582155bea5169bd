"""What executes exported files: logits, and on request what every planned operation read and gave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from qplug.export.calls import INPUT, LOGITS, Call

if TYPE_CHECKING:
    import onnx

APART = "apart."
SHOWN = ((0, 2), (1, 2), (5, 6))
"""Of the outputs: the first that is shown, and how many it is to the next."""


class Runtime(Protocol):
    """Executes one file on the CPU."""

    calls: Sequence[Call]

    def logits(self, x: Tensor) -> Tensor:
        """A batch → its logits, by the file as it is."""

    def watch(self, x: Tensor) -> Iterator[dict[str, Tensor]]:
        """A batch → every value that a call names, and the logits, for each way in which the runtime executes it."""

    def fused(self, x: Tensor) -> Iterator[dict[str, Tensor]]:
        """A batch → input, logits and some calls' outputs, so that kernels go across the others; none where none do."""


class OnnxRuntime:
    """ONNX Runtime with its default optimizations, as many threads as torch has.

    What it is asked to show of a file cannot be fused away, so it watches in sessions of their own: one optimized, as
    the file will run, and one that executes every operator as it is. A wrong axis, say, is lost where the runtime fuses
    a matmul with its dequantized weight, and another runtime would meet it. What is fused across operations is in
    sessions that show every second output, and one in six, about one a block of a transformer.
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
            shown = _showing(self._model, names)
            self._watching = [_session(shown, optimized) for optimized in (True, False)]
        for session in self._watching:
            yield _values(session, names, x)

    def fused(self, x: Tensor) -> Iterator[dict[str, Tensor]]:
        """See ``Runtime``."""
        outputs = [name for name in dict.fromkeys(call.output for call in self.calls) if name != LOGITS]
        if not self._fused:
            chosen = [outputs[first::step] for first, step in SHOWN]
            self._fused = [(names, _session(_showing_apart(self._model, names))) for names in chosen]
        for names, session in self._fused:
            found = _values(session, [APART + name for name in names], x)
            yield {name.removeprefix(APART): -v if name.startswith(APART) else v for name, v in found.items()}


def _session(content: bytes, optimized: bool = True) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # each session's would keep the most that any batch needed
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _values(session: Any, names: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    wanted = [*names, LOGITS]
    found = session.run(wanted, {INPUT: x.numpy()})
    return {INPUT: x} | {name: torch.from_numpy(value) for name, value in zip(wanted, found, strict=True)}


def _showing(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    import onnx

    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    known = {value.name: value for value in shown.graph.value_info}
    shown.graph.output.extend(known[name] for name in names)
    content: bytes = shown.SerializeToString()
    return content


def _showing_apart(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """Values with their signs turned, and ``APART`` before their names.

    The runtime moves the quantizer of an operand through a transpose up to the output that it reads, and would show
    that output quantized; the same output with another reader it leaves alone.
    """
    import onnx

    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    known = {value.name: value for value in shown.graph.value_info}
    for name in names:
        shown.graph.node.append(onnx.helper.make_node("Neg", [name], [APART + name]))
        shown.graph.output.append(known[name])
        shown.graph.output[-1].name = APART + name
    content: bytes = shown.SerializeToString()
    return content
