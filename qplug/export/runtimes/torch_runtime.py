"""torch executes programs of torch.export."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from qplug.export.calls import INPUT, LOGITS, Call
from qplug.export.exported_file import ExportedFile


class TorchRuntime:
    """Executes a program in eager torch, operator by operator."""

    def __init__(self, program: ExportedProgram, calls: Sequence[Call]) -> None:
        self.calls = calls
        self._module = program.module()

    def logits(self, x: Tensor) -> Tensor:
        """See ``Runtime``."""
        out: Tensor = self._module(x)
        return out

    def watch(self, x: Tensor) -> Iterator[dict[str, Tensor]]:
        """See ``Runtime``."""
        recorder = _Recorder(self._module, {name for call in self.calls for name in (*call.inputs, call.output)})
        yield {INPUT: x, LOGITS: recorder.run(x)} | recorder.values

    def fused(self, x: Tensor) -> Iterator[dict[str, Tensor]]:
        """See ``Runtime``. Eager torch fuses nothing."""
        return iter(())


def open_file(file: ExportedFile) -> TorchRuntime:
    """A session that executes the program as ``torch.export.load`` reads it from the file's bytes."""
    return TorchRuntime(torch.export.load(io.BytesIO(file.content({}))), file.calls)


class _Recorder(fx.Interpreter):
    """Runs a graph and copies the outputs of some nodes before a later node overwrites them."""

    def __init__(self, module: nn.Module, names: set[str]) -> None:
        super().__init__(module)
        self.names, self.values = names, dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        """Run the node and copy its output if its name is in ``names``."""
        value = super().run_node(n)
        if n.name in self.names:
            self.values[n.name] = value.clone()
        return value
