"""From a run folder to a file that a runtime executes: load, lower, compare with the simulation, write."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplug.core.errors import InputError, exits_named
from qplug.core.storage.atomic import check_file, write_file
from qplug.export.cpu import SATURATING, may_saturate
from qplug.export.formats.table import DEFAULT, ExportFormat, format_of, with_integer_products
from qplug.export.requirements import check_installed
from qplug.export.runtimes.table import RUNTIMES
from qplug.hooks.registry import Registry, installed
from qplug.pipeline.load_run import load_planned

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from qplug.export.parity.result import Parity
    from qplug.recipe import AllowCode

COMPARED_IMAGES = 16
"""Evaluation images that the parity check runs, unless given."""


@dataclass
class Export:
    """The result of an export.

    Attributes:
        path: the file.
        format: the format's name.
        size: bytes of the file.
        float_size: bytes of the float model's weights.
        parity: comparison of the file with the simulation; ``None`` without ``verify``.
        warnings: one sentence each.
    """

    path: Path
    format: str
    size: int
    float_size: int
    parity: Parity | None
    warnings: list[str] = field(default_factory=list)


@exits_named
def export_run(
    run_folder: str | Path,
    format: str = DEFAULT,
    out: str | Path | None = None,
    *,
    verify: bool = True,
    images: int = COMPARED_IMAGES,
    saturating: bool = False,
    changed_code: bool = False,
    registry: Registry | None = None,
    allow_code: AllowCode = False,
    model: nn.Module | None = None,
    inputs: Iterable[Any] | None = None,
) -> Export:
    """Write a run's quantized model to a file, provided that a runtime computes the simulation's values from it.

    Args:
        run_folder: that ``qplug run`` or ``qplug.run`` wrote.
        format: a name of ``qplug.export.formats.table.FORMATS``; ``qplug export --help`` describes them.
        out: the file; by default beside the run folder, with its name.
        verify: run the file on the first ``images`` of the run's evaluation images and compare it with the simulation.
        images: number of images to compare, at least 1.
        saturating: multiply unsigned by signed bytes on every processor, in a format with products of 8-bit integers.
            This makes an ``onnx-qdq`` file faster on x86 with VNNI. On x86 without VNNI these products saturate.
            The file's metadata state this. By default the products are exact on every processor, and products with
            7 bits or fewer on one side always are.
        changed_code: export the run although the code of qplug or of a plugin is not that of the run; the file's
            metadata and a warning state this.
        registry: of installed plugins; discovered if ``None``.
        allow_code: whether the run's recipe may name code from outside the installed packages, as ``load_recipe``.
        model: the float model of a run of ``qplug.quantize``, as ``load_quantized`` takes it.
        inputs: batches to compare on, as ``qplug.quantize`` takes them; the run's evaluation images unless given.

    Raises:
        InputError: the run folder or an argument is wrong, a package is missing, the target exists, the format cannot
            express the model or a quantizer, or the file lacks a call of a quantized module.
        ParityError: the runtime computes other values. Nothing is written.
    """
    row = format_of(format)
    _check_arguments(row, saturating, images)
    check_installed(format, row.needs + (RUNTIMES[row.runtime].needs if verify else ()))
    registry = registry or installed()
    target = Path(out) if out is not None else Path(f"{Path(run_folder)}{row.suffix}")
    check_new(target)
    planned = load_planned(run_folder, registry, changed_code, allow_code=allow_code, model=model)

    from qplug.export.metadata import metadata
    from qplug.export.parity.diagnose import explained
    from qplug.export.parity.verify import Compared, verified
    from qplug.quantization.calls import check_calls

    with explained(planned, row, registry):
        file = row.write(planned, saturating)
    calls = Counter(call.operation for call in file.calls)
    calls.update({name: planned.plan.calls.get(name, 0) for merged in file.joined.values() for name in merged})
    check_calls(calls, planned.plan, "the exported file")
    compared = Compared(images, model, inputs)
    parity = verified(file, planned, row, compared, saturating, registry) if verify else None
    inexact = saturating and any(may_saturate(planned.plan, path) for path in planned.plan.modules())
    content = file.content(metadata(planned, row, file.calls, parity, inexact))
    check_new(target)
    write_file(target, content)
    warnings = [f"the file holds {name} in float32: its quantizer has no codes" for name in file.float_weights]
    warnings += planned.code_changes
    if parity is None:
        warnings.append("the file was not compared with the simulation")
    if inexact:
        warnings.append(f"the file multiplies {SATURATING}")
    float_size = round(planned.run.metrics["float.size_mb"] * 1e6)
    return Export(target, format, len(content), float_size, parity, warnings)


def check_new(target: Path) -> None:
    """Check that ``target`` does not exist and can be written; raises ``InputError``."""
    if target.exists() or target.is_symlink():
        raise InputError("this file exists", where=str(target), fix="name another with --out, or remove it")
    check_file(target, "--out")


def _check_arguments(row: ExportFormat, saturating: bool, images: int) -> None:
    if saturating and not row.integer_products:
        raise InputError(
            f"expected a format with products of 8-bit integers, received {row.name}",
            where="saturating",
            fix=f"leave it out, or export to {' or '.join(with_integer_products())}",
        )
    if images < 1:
        raise InputError(f"expected at least 1 image to compare, received {images}", where="images")
