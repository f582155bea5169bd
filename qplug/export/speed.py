"""How fast ONNX Runtime executes files, side by side, and where its time goes."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplug.export.calls import INPUT, LOGITS

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

AT_LEAST = 0.05
"""Seconds that one round of one file takes at least, so that the clock and one interrupt decide nothing."""
WARM_UP = 1
"""Rounds that are not counted."""
INTEGERS = ("int8", "uint8")


@dataclass(frozen=True)
class Spread:
    """The quartiles of what the rounds gave."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value a round."""
        import numpy as np

        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        return cls(float(low), float(median), float(high))


@dataclass(frozen=True)
class Race:
    """Two files side by side: in each round one after the other, so that what slows the machine slows both.

    Attributes:
        batch: images a call.
        threads: of the runtime.
        float_seconds: a call, one value a round.
        quantized_seconds: likewise.
    """

    batch: int
    threads: int
    float_seconds: tuple[float, ...]
    quantized_seconds: tuple[float, ...]

    @property
    def float_spread(self) -> Spread:
        """Seconds of a call of the float file."""
        return Spread.of(self.float_seconds)

    @property
    def quantized_spread(self) -> Spread:
        """Seconds of a call of the quantized file."""
        return Spread.of(self.quantized_seconds)

    @property
    def ratio(self) -> Spread:
        """How many times as fast the quantized file is: of the ratios of each round."""
        pairs = zip(self.float_seconds, self.quantized_seconds, strict=True)
        return Spread.of([slow / fast for slow, fast in pairs])


@dataclass
class Share:
    """What one type of operator takes.

    Attributes:
        operator: its name in the runtime, after fusion.
        nodes: how many there are.
        seconds: a call, all nodes together.
        integer: whether it reads integers of 8 bits.
    """

    operator: str
    integer: bool
    nodes: int = 0
    seconds: float = 0.0


@dataclass
class Profile:
    """Where the runtime's time goes, the most expensive operator first; the clock of each node costs time too."""

    batch: int
    shares: list[Share] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of a call, in all nodes."""
        return sum(share.seconds for share in self.shares)

    @property
    def float_share(self) -> float:
        """The part of the time that goes to nodes that read no integers."""
        return sum(share.seconds for share in self.shares if not share.integer) / self.seconds if self.shares else 0.0


def session(
    model: onnx.ModelProto,
    threads: int,
    profile: Path | None = None,
    optimized: Path | None = None,
) -> Any:
    """A session of ONNX Runtime on the CPU, all optimizations on.

    Threads do not spin behind a call: those of one session would take the processor from another.

    Args:
        model: the file.
        threads: within an operator.
        profile: what the file of the runtime's profile begins with; ``None``: it writes none.
        optimized: where the runtime writes the graph that it executes; ``None``: nowhere.
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
    """Time two files on one batch ``x``, in turns, ``rounds`` times."""
    sessions = [session(model, threads) for model in (float_, quantized)]
    for one in sessions:
        _seconds(one, x, 1)  # the first call allocates
    calls = [max(1, round(AT_LEAST / _seconds(one, x, 1))) for one in sessions]
    seconds: list[list[float]] = [[], []]
    for number in range(WARM_UP + rounds):
        for one, count, found in zip(sessions, calls, seconds, strict=True):
            taken = _seconds(one, x, count)
            if number >= WARM_UP:
                found.append(taken)
    return Race(len(x), threads, tuple(seconds[0]), tuple(seconds[1]))


def profile(model: onnx.ModelProto, x: NDArray[Any], threads: int, calls: int) -> Profile:
    """What each operator takes on ``x``, by the runtime's own profile, a mean of ``calls`` after one that warms up."""
    with tempfile.TemporaryDirectory() as folder:
        one = session(model, threads, Path(folder) / "profile")
        for _ in range(1 + calls):
            one.run([LOGITS], {INPUT: x})
        events = json.loads(Path(one.end_profiling()).read_text(encoding="utf-8"))
    return Profile(len(x), shares(events, calls))


def shares(events: Sequence[Mapping[str, Any]], calls: int) -> list[Share]:
    """The events of a profile, by operator and by what it reads; those of the first call are left out."""
    nodes: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            nodes.setdefault(event["name"], []).append(event)
    found: dict[tuple[str, bool], Share] = {}
    for timed in nodes.values():
        operator = str(timed[0]["args"]["op_name"])
        read = [next(iter(kind)) for kind in timed[0]["args"].get("input_type_shape", [])]
        integer = bool(read) and read[0] in INTEGERS
        share = found.setdefault((operator, integer), Share(operator, integer))
        share.nodes += 1
        share.seconds += sum(event["dur"] for event in timed[len(timed) // (calls + 1) :]) / 1e6 / calls
    return sorted(found.values(), key=lambda share: -share.seconds)


def _seconds(one: Any, x: NDArray[Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        one.run([LOGITS], {INPUT: x})
    return (time.perf_counter() - start) / calls
