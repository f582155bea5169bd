"""The table of export formats. A new format is a module in this folder and a row of ``FORMATS``.

The command line, ``export_run``, ``bench``, the metadata and the documentation read this table.
Importing it imports neither torch nor onnx.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qplug.core.errors import InputError
from qplug.core.text import did_you_mean
from qplug.core.types import Extra
from qplug.export.requirements import ONNX, ONNX_IR, ONNXSCRIPT, imported

if TYPE_CHECKING:
    from qplug.export.exported_file import ExportedFile
    from qplug.pipeline.load_run import LoadedRun

NEEDED_BY_ONNX = (ONNX, ONNX_IR, ONNXSCRIPT)
"""Packages that write an ONNX file."""


@dataclass(frozen=True)
class ExportFormat:
    """One format of exported files.

    Attributes:
        name: value of ``--format``.
        suffix: of the default file name, which is the run folder's name with it.
        description: one line, for the help and the documentation.
        writer: ``module:function``, a ``LoadedRun`` → an ``ExportedFile``; imported at the first use.
            The writer of a format with ``integer_products`` takes the argument ``saturating`` too.
        runtime: row of ``RUNTIMES`` that the parity check executes the file in.
        needs: packages that must be installed to write it.
        integer_products: whether ONNX Runtime multiplies its 8-bit integers as integers. ``--saturating`` applies then.
        timed: whether ``qplug bench`` can time it.
    """

    name: str
    suffix: str
    description: str
    writer: str
    runtime: str
    needs: tuple[Extra, ...] = ()
    integer_products: bool = False
    timed: bool = False

    def write(self, planned: LoadedRun, saturating: bool = False) -> ExportedFile:
        """The run as a file of this format, in memory."""
        writer = imported(self.writer)
        file: ExportedFile = writer(planned, saturating) if self.integer_products else writer(planned)
        return file


_ROWS = (
    ExportFormat(
        "onnx-qdq",
        ".onnx",
        "ONNX with QuantizeLinear and DequantizeLinear",
        "qplug.export.formats.qdq_file:qdq_file",
        runtime="onnxruntime",
        needs=NEEDED_BY_ONNX,
        integer_products=True,
        timed=True,
    ),
    ExportFormat(
        "onnx-integer",
        ".integer.onnx",
        "the same, with products of 8-bit integers in the form that ONNX Runtime executes fastest on a CPU",
        "qplug.export.formats.integer_file:integer_file",
        runtime="onnxruntime",
        needs=NEEDED_BY_ONNX,
        integer_products=True,
        timed=True,
    ),
    ExportFormat(
        "onnx-qonnx",
        ".qonnx.onnx",
        "ONNX with QONNX's operator Quant, for any width, with weights in float32",
        "qplug.export.formats.qonnx:qonnx_file",
        runtime="onnxruntime",
        needs=NEEDED_BY_ONNX,
    ),
    ExportFormat(
        "torch",
        ".pt2",
        "a program for torch.export.load, without pickle, which torch alone can load",
        "qplug.export.formats.torch_program:torch_file",
        runtime="torch",
    ),
)
FORMATS: dict[str, ExportFormat] = {row.name: row for row in _ROWS}
"""Name → format, in the order of the documentation."""
DEFAULT = "onnx-qdq"
"""The format of ``qplug export``, unless given."""
DEFAULT_TIMED = "onnx-integer"
"""The format of ``qplug bench``, unless given."""


def with_integer_products() -> list[str]:
    """Names of the formats whose 8-bit integers are multiplied as integers."""
    return [name for name, row in FORMATS.items() if row.integer_products]


def timed() -> list[str]:
    """Names of the formats that ``qplug bench`` can time."""
    return [name for name, row in FORMATS.items() if row.timed]


def described() -> str:
    """Every format with its description, for ``qplug export --help``."""
    return "; ".join(f"{name}: {row.description}" for name, row in FORMATS.items())


def format_of(name: str, among: list[str] | None = None, where: str = "format") -> ExportFormat:
    """The format called ``name``.

    Args:
        name: from the user.
        among: names that are allowed; all if ``None``.
        where: option or argument that holds ``name``, for the error.

    Raises:
        InputError: no format has this name, or it is not allowed here.
    """
    names = list(FORMATS) if among is None else among
    if name in names:
        return FORMATS[name]
    raise InputError(
        f"expected one of {', '.join(names)}, received {name!r}",
        where=where,
        fix=did_you_mean(name, names) or "'qplug export --help' describes them",
    )
