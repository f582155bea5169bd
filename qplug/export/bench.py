"""``qplug bench``: a run's float and quantised models side by side in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qplug.errors import InputError

if TYPE_CHECKING:
    from qplug.export.speed import Profile, Race
    from qplug.registry import Registry

PROFILED = 10
"""Calls whose times a profile averages, fewer where a batch is large."""
INSTALL = "pip install 'qplug[export]'"
FORMATS = {"onnx-integer": "integer_model", "onnx-qdq": "qdq_model"}
"""Name → the function of ``qplug.export.integer_file`` that makes such a file."""


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes:
        folder: the run's.
        form: of the quantised file.
        runtime: its name and version.
        megabytes: of the float file and of the quantised one, 10^6 bytes.
        races: one for each batch, in the order asked for.
        profiles: of the quantised file, likewise; empty where none was asked for.
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
    profiled: bool = False,
    registry: Registry | None = None,
) -> Bench:
    """Export a run's model with and without its quantizers, and time both in turns.

    Args:
        folder: that ``qplug run`` wrote.
        batches: images a call.
        threads: of the runtime, for both.
        rounds: how often each is timed.
        form: of the quantised file, one of ``FORMATS``.
        profiled: whether to say where the quantised file's time goes.
        registry: what is installed, unless given.

    Raises:
        InputError: the folder holds no run; the plan or the model cannot be exported; the extra ``export`` is missing.
    """
    try:
        import onnx_ir  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"needs {error.name}, which is not installed", where="qplug bench", fix=INSTALL) from error
    from qplug.export import integer_file
    from qplug.export.speed import profile, race
    from qplug.load import load_planned
    from qplug.registry import installed

    planned = load_planned(folder, registry or installed())
    files = [make(planned)[0] for make in (integer_file.float_model, getattr(integer_file, FORMATS[form]))]
    example = planned.preprocessing.example()
    inputs = [example.repeat(batch, *[1] * (example.dim() - 1)).numpy() for batch in batches]
    races = tuple(race(files[0], files[1], x, threads, rounds) for x in inputs)
    calls = [max(2, PROFILED // len(x)) for x in inputs]
    timed = zip(inputs, calls, strict=True) if profiled else ()
    profiles = tuple(profile(files[1], x, threads, count) for x, count in timed)
    sizes = (files[0].ByteSize() / 1e6, files[1].ByteSize() / 1e6)
    name = f"ONNX Runtime {onnxruntime.__version__}"
    return Bench(Path(folder), form, name, sizes, races, profiles)
