"""``qplug bench``: a run's float and quantized models, timed side by side in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qplug.export.formats.table import DEFAULT_TIMED, format_of, timed
from qplug.export.requirements import check_installed
from qplug.export.runtimes.table import RUNTIMES

if TYPE_CHECKING:
    from qplug.export.operator_times import Profile
    from qplug.export.speed import Race
    from qplug.hooks.registry import Registry
    from qplug.recipe import AllowCode

PROFILED_IMAGES = 10
"""Images that a profile runs for each batch size, in at least two calls."""


@dataclass(frozen=True)
class Bench:
    """The result of ``bench``.

    Attributes:
        folder: of the run.
        form: format of the quantized file, followed by ``--saturating`` if its products saturate.
        runtime: name and version of the runtime, and the processor.
        megabytes: of the float file and of the quantized file, 10^6 bytes.
        races: one for each batch size, in the given order.
        profiles: of the quantized file, in the same order; empty without ``profiled``.
    """

    folder: Path
    form: str
    runtime: str
    megabytes: tuple[float, float]
    races: tuple[Race, ...]
    profiles: tuple[Profile, ...]


def bench(
    folder: str | Path,
    *,
    batches: Sequence[int],
    threads: int,
    rounds: int,
    form: str = DEFAULT_TIMED,
    saturating: bool = False,
    profiled: bool = False,
    registry: Registry | None = None,
    allow_code: AllowCode = False,
) -> Bench:
    """Export a run's model with and without its quantizers, and time both files in turns.

    Args:
        folder: that ``qplug run`` wrote.
        batches: images per call, one measurement each.
        threads: of the runtime, for both files.
        rounds: number of timings of each file.
        form: format of the quantized file, one that ``FORMATS`` marks as ``timed``.
        saturating: see ``export_run``.
        profiled: also measure the time of each operator of the quantized file.
        registry: of installed plugins; discovered if ``None``.
        allow_code: as ``export_run`` takes it.

    Raises:
        InputError: the folder holds no run, the plan or the model cannot be exported, or a package is missing.
    """
    row = format_of(form, timed())
    check_installed("qplug bench", row.needs + RUNTIMES[row.runtime].needs)
    from qplug.export.formats.integer_file import float_file
    from qplug.export.operator_times import profile
    from qplug.export.parity.diagnose import explained
    from qplug.export.speed import race
    from qplug.hooks.registry import installed
    from qplug.pipeline.load_run import load_planned

    registry = registry or installed()
    planned = load_planned(folder, registry, allow_code=allow_code)
    with explained(planned, row, registry):
        files = [float_file(planned).model, row.write(planned, saturating).model]
    example = planned.preprocessing.example()
    inputs = [example.repeat(batch, *[1] * (example.dim() - 1)).numpy() for batch in batches]
    races = tuple(race(files[0], files[1], x, threads, rounds) for x in inputs)
    profiles = [profile(files[1], x, threads, max(2, PROFILED_IMAGES // len(x))) for x in inputs if profiled]
    sizes = (files[0].ByteSize() / 1e6, files[1].ByteSize() / 1e6)
    return Bench(
        Path(folder), f"{form} --saturating" if saturating else form, _runtime(), sizes, races, tuple(profiles)
    )


def _runtime() -> str:
    import onnxruntime

    from qplug.export.cpu import processor

    found = processor()
    instructions = ", ".join(found["instructions"]) or "without VNNI"
    return f"ONNX Runtime {onnxruntime.__version__} on {found['name']} ({found['architecture']}, {instructions})"
