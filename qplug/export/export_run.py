"""From a run folder to a file that a runtime executes: loaded, lowered, compared with the simulation, written."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from qplug.core.errors import InputError, ParityError, QplugError
from qplug.core.storage.atomic import check_file, write_file
from qplug.export.cpu import INTEGER, SATURATING, caution
from qplug.hooks.registry import Registry, component, installed
from qplug.pipeline.load_run import LoadedRun, load_planned, load_quantized
from qplug.pipeline.run_key import EVALUATION_SEED

if TYPE_CHECKING:
    from torch import Tensor

    from qplug.export.parity.check import Parity

FormatName = Literal["onnx-qdq", "onnx-integer", "onnx-qonnx", "torch"]
SUFFIX: dict[str, str] = {
    "onnx-qdq": ".onnx",
    "onnx-integer": ".integer.onnx",
    "onnx-qonnx": ".qonnx.onnx",
    "torch": ".pt2",
}
NEEDED = ("onnx", "onnx_ir", "onnxruntime", "onnxscript")
IMAGES, BATCH = 16, 4


@dataclass
class Export:
    """What an export found out.

    Attributes:
        path: the file.
        format: its name.
        size: bytes.
        float_size: bytes of the float model's weights.
        parity: what the gate found; ``None`` where it was not asked.
        warnings: one sentence each.
    """

    path: Path
    format: str
    size: int
    float_size: int
    parity: Parity | None
    warnings: list[str] = field(default_factory=list)


def export_run(
    run_folder: str | Path,
    format: FormatName = "onnx-qdq",
    out: str | Path | None = None,
    *,
    verify: bool = True,
    images: int = IMAGES,
    saturating: bool = False,
    registry: Registry | None = None,
) -> Export:
    """Write a run's quantized model in ``format``, if a runtime computes from it what was simulated.

    Args:
        run_folder: that ``qplug run`` or ``qplug.run`` wrote.
        format: ``onnx-qdq`` (QuantizeLinear and DequantizeLinear), ``onnx-integer`` (the same, products of 8-bit
            integers as ONNX Runtime executes them fastest on a CPU), ``onnx-qonnx`` (QONNX's Quant), or ``torch`` (an
            exported program, ``.pt2``).
        out: the file; by default beside the run folder, with its name.
        verify: run the file on the first ``images`` of the run's evaluation images and compare it with the simulation.
        images: how many, at least 1.
        saturating: of ``onnx-qdq`` and ``onnx-integer``: multiply unsigned by signed bytes on every processor. With
            VNNI an ``onnx-qdq`` file is faster by it; on x86 without VNNI the products saturate. The file says so.
            Otherwise the products are exact on every processor.
        registry: what is installed, unless given.

    Raises:
        InputError: the run folder, a missing extra, a target that exists, or something that the format cannot express.
        ParityError: the runtime computes something else; nothing is written.
    """
    if format not in get_args(FormatName):
        raise InputError(f"there is no format '{format}'", fix=f"choose one of {', '.join(get_args(FormatName))}")
    if saturating and format not in INTEGER:
        raise InputError(
            f"{format} multiplies no bytes",
            where="saturating",
            fix=f"leave it out, or export to {' or '.join(INTEGER)}",
        )
    if images < 1:
        raise InputError(f"expected at least 1 image to compare, received {images}", where="images")
    require_extra()
    registry = registry or installed()
    target = Path(out) if out is not None else Path(f"{Path(run_folder)}{SUFFIX[format]}")
    check_new(target)
    planned = load_planned(run_folder, registry)

    from qplug.export.metadata import metadata
    from qplug.export.parity.diagnose import explained

    with explained(planned, format, registry):
        file = _file(planned, format, saturating)
    parity = None
    if verify:
        try:
            parity = _parity(file, planned, images, registry)
        except QplugError:
            raise
        except Exception as error:  # each runtime has errors of its own
            said = f"the runtime cannot execute the file: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise ParityError(said, where=format, fix=FIX) from error
        if parity.first_wrong is not None:
            found, hint = refusal(parity, planned), caution() if saturating else None
            raise ParityError(found.what, where=found.where, fix=f"{hint}; {found.fix}" if hint else found.fix)
    content = file.content(metadata(planned, format, file.calls, parity, saturating))
    check_new(target)
    write_file(target, content)
    warnings = [f"{name} is in float32 in the file: its quantizer has no codes" for name in file.float_weights]
    if parity is None:
        warnings.append("nobody checked that a runtime computes from this file what was simulated")
    if saturating:
        warnings.append(f"the file multiplies {SATURATING}")
    float_size = round(planned.run.metrics["float.size_mb"] * 1e6)
    return Export(target, format, len(content), float_size, parity, warnings)


def require_extra() -> None:
    """Raise ``InputError`` where a package of the extra ``export`` is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"an export needs {', '.join(missing)}", fix="pip install 'qplug[export]'")


def check_new(target: Path) -> None:
    """Refuse a file that exists or cannot be made; raises ``InputError``."""
    if target.exists() or target.is_symlink():
        raise InputError("this file exists", where=str(target), fix="name another with --out, or remove it")
    check_file(target, "--out")


def refusal(parity: Parity, planned: LoadedRun) -> ParityError:
    """The error for an export that does not agree: the first place, and how far."""
    from qplug.export.parity.check import FREE, TOP1
    from qplug.export.parity.fused import FUSED

    place = parity.first_wrong
    assert place is not None
    operation, what = place
    if what == TOP1:
        said = (
            f"{parity.agreeing} of {parity.images} images have the simulation's top-1, and {parity.steady} keep theirs "
            "under rounding noise of 1e-6"
        )
        return ParityError(said, where="logits", fix=FIX)
    if what == FUSED:
        said = (
            f"the runtime's output is not the simulation's, by {parity.fused[operation]}, where it may fuse what lies "
            "between the outputs that it shows; all operations alone agree"
        )
        return ParityError(said, where=operation or "logits", fix=FIX)
    if what == FREE:
        said = f"those of a free run differ by {parity.free}; rounding noise of 1e-6 moves them by {parity.chaos:.1e}"
        return ParityError(said, where="logits", fix=FIX)
    wrong = [" ".join(reversed(place)) for place, difference in parity.places.items() if not difference.agrees]
    quantizers = ", ".join(f"{role}: {q.describe()}" for role, q in planned.plan.of(operation).items())
    said = f"the runtime's {what} is not the simulation's, by {parity.places[place]}, for the same operands"
    more = (
        f"; {len(wrong)} of {len(parity.places)} places differ: {', '.join(wrong[:5])}{', …' if len(wrong) > 5 else ''}"
    )
    return ParityError(
        said + more, where=f"{operation} ({quantizers})" if quantizers else operation or "logits", fix=FIX
    )


FIX = "nothing was written; --no-verify writes the file all the same and says so in it, for finding the cause"


def _file(planned: LoadedRun, format: str, saturating: bool) -> Any:
    if format == "torch":
        from qplug.export.formats.torch_program import torch_file

        return torch_file(planned)
    from qplug.export.formats.integer_file import integer_file
    from qplug.export.formats.onnx_file import qdq_file, qonnx_file

    if format == "onnx-qonnx":
        return qonnx_file(planned)
    return {"onnx-qdq": qdq_file, "onnx-integer": integer_file}[format](planned, saturating)


def _parity(file: Any, planned: LoadedRun, images: int, registry: Registry) -> Parity:
    from qplug.export.parity.check import compare
    from qplug.hooks.registry import backend_of

    simulation = load_quantized(planned.run.folder, registry=registry)
    inputs = _inputs(planned, images, registry)
    with backend_of(planned.recipe.backend, registry).inference(simulation):
        return compare(file.runtime(), simulation, planned.plan, inputs, file.joined, planned.task)


def _inputs(planned: LoadedRun, images: int, registry: Registry) -> Iterator[Tensor]:
    """The first evaluation images, in batches."""
    from qplug.data.loading import batches

    opened = component(registry.datasets, planned.recipe.data.evaluation).open(EVALUATION_SEED)
    count = min(images, len(opened))
    stream = batches(opened, planned.preprocessing.transform(), min(BATCH, count))
    for start, (x, _) in zip(range(0, count, BATCH), stream, strict=False):
        yield x[: count - start]
