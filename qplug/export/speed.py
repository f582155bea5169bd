"""Times of two files in ONNX Runtime, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplug.export.calls import INPUT, LOGITS

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

SHORTEST_ROUND = 0.05
"""Shortest time of one file's round in seconds, so that the clock's resolution and one interrupt have no effect."""
WARM_UP_ROUNDS = 1
"""Rounds that are not counted."""


@dataclass(frozen=True)
class Spread:
    """Quartiles over the rounds."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Quartiles of ``values``, one per round."""
        import numpy as np

        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        return cls(float(low), float(median), float(high))


@dataclass(frozen=True)
class Race:
    """Times of two files. Each round times both, so that a slower machine slows both.

    Attributes:
        batch: images per call.
        threads: of the runtime.
        float_seconds: per call of the float file, one value per round.
        quantized_seconds: per call of the quantized file, one value per round.
    """

    batch: int
    threads: int
    float_seconds: tuple[float, ...]
    quantized_seconds: tuple[float, ...]

    @property
    def float_spread(self) -> Spread:
        """Seconds per call of the float file."""
        return Spread.of(self.float_seconds)

    @property
    def quantized_spread(self) -> Spread:
        """Seconds per call of the quantized file."""
        return Spread.of(self.quantized_seconds)

    @property
    def ratio(self) -> Spread:
        """Speed of the quantized file divided by that of the float file, from the ratio of each round."""
        pairs = zip(self.float_seconds, self.quantized_seconds, strict=True)
        return Spread.of([slow / fast for slow, fast in pairs])


def session(
    model: onnx.ModelProto,
    threads: int,
    profile: Path | None = None,
    optimized: Path | None = None,
) -> Any:
    """A session of ONNX Runtime on the CPU, with all optimizations.

    Threads do not spin after a call, because they would take the processor from another session.

    Args:
        model: the file.
        threads: within an operator.
        profile: prefix of the profile that the runtime writes; ``None`` for no profile.
        optimized: path of the optimized graph that the runtime writes; ``None`` for none.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def race(float_: onnx.ModelProto, quantized: onnx.ModelProto, x: NDArray[Any], threads: int, rounds: int) -> Race:
    """Time two files on the batch ``x``, in turns, for ``rounds`` rounds."""
    sessions = [session(model, threads) for model in (float_, quantized)]
    for one in sessions:
        _seconds(one, x, 1)  # the first call allocates
    calls = [max(1, round(SHORTEST_ROUND / _seconds(one, x, 1))) for one in sessions]
    seconds: list[list[float]] = [[], []]
    for number in range(WARM_UP_ROUNDS + rounds):
        for one, count, found in zip(sessions, calls, seconds, strict=True):
            taken = _seconds(one, x, count)
            if number >= WARM_UP_ROUNDS:
                found.append(taken)
    return Race(len(x), threads, tuple(seconds[0]), tuple(seconds[1]))


def _seconds(one: Any, x: NDArray[Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        one.run([LOGITS], {INPUT: x})
    return (time.perf_counter() - start) / calls
