"""``qplug bench``: a run's float and quantized models side by side in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qplug.export.cpu import INTEGER

if TYPE_CHECKING:
    from qplug.export.speed import Profile, Race
    from qplug.hooks.registry import Registry

PROFILED = 10
"""Calls whose times a profile averages, fewer where a batch is large."""
FORMATS = INTEGER


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes:
        folder: the run's.
        form: of the quantized file, and whether its products are saturating.
        runtime: its name and version.
        megabytes: of the float file and of the quantized one, 10^6 bytes.
        races: one for each batch, in the order asked for.
        profiles: of the quantized file, likewise; empty where none was asked for.
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
    form: str = "onnx-integer",
    saturating: bool = False,
    profiled: bool = False,
    registry: Registry | None = None,
) -> Bench:
    """Export a run's model with and without its quantizers, and time both in turns.

    Args:
        folder: that ``qplug run`` wrote.
        batches: images a call.
        threads: of the runtime, for both.
        rounds: how often each is timed.
        form: of the quantized file, one of ``FORMATS``.
        saturating: as of ``export_run``.
        profiled: whether to say where the quantized file's time goes.
        registry: what is installed, unless given.

    Raises:
        InputError: the folder holds no run; the plan or the model cannot be exported; the extra ``export`` is missing.
    """
    from qplug.export.export_run import require_extra

    require_extra()
    import onnxruntime

    from qplug.export.cpu import processor
    from qplug.export.formats.integer_file import float_file, integer_file
    from qplug.export.formats.onnx_file import qdq_file
    from qplug.export.parity.diagnose import explained
    from qplug.export.speed import profile, race
    from qplug.hooks.registry import installed
    from qplug.pipeline.load_run import load_planned

    registry = registry or installed()
    planned = load_planned(folder, registry)
    quantized = {"onnx-integer": integer_file, "onnx-qdq": qdq_file}[form]
    with explained(planned, form, registry):
        files = [float_file(planned).model, quantized(planned, saturating).model]
    example = planned.preprocessing.example()
    inputs = [example.repeat(batch, *[1] * (example.dim() - 1)).numpy() for batch in batches]
    races = tuple(race(files[0], files[1], x, threads, rounds) for x in inputs)
    calls = [max(2, PROFILED // len(x)) for x in inputs]
    timed = zip(inputs, calls, strict=True) if profiled else ()
    profiles = tuple(profile(files[1], x, threads, count) for x, count in timed)
    sizes = (files[0].ByteSize() / 1e6, files[1].ByteSize() / 1e6)
    on = processor()
    vnni = ", ".join(on["instructions"]) or "without VNNI"
    name = f"ONNX Runtime {onnxruntime.__version__} on {on['name']} ({on['architecture']}, {vnni})"
    return Bench(Path(folder), f"{form} --saturating" if saturating else form, name, sizes, races, profiles)
