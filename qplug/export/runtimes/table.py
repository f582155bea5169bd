"""The table of runtimes. A new runtime is a module in this folder and a row of ``RUNTIMES``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qplug.core.types import Extra
from qplug.export.requirements import ONNX, ONNXRUNTIME, imported

if TYPE_CHECKING:
    from qplug.export.exported_file import ExportedFile
    from qplug.export.runtimes.base import Runtime


@dataclass(frozen=True)
class ExportRuntime:
    """A runtime that the parity check can execute files in.

    Attributes:
        title: the runtime's name in messages.
        opener: ``module:function``, an ``ExportedFile`` → a ``Runtime``; imported at the first use.
        needs: packages that must be installed.
    """

    title: str
    opener: str
    needs: tuple[Extra, ...] = ()

    def open(self, file: ExportedFile) -> Runtime:
        """A session that executes ``file``."""
        runtime: Runtime = imported(self.opener)(file)
        return runtime


RUNTIMES: dict[str, ExportRuntime] = {
    "onnxruntime": ExportRuntime(
        "ONNX Runtime", "qplug.export.runtimes.onnx_runtime:open_file", needs=(ONNX, ONNXRUNTIME)
    ),
    "torch": ExportRuntime("torch", "qplug.export.runtimes.torch_runtime:open_file"),
}
"""Name, as rows of ``FORMATS`` refer to it → runtime."""
