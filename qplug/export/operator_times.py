"""Time of each type of operator in a file, from ONNX Runtime's own profile."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplug.export.calls import INPUT, LOGITS
from qplug.export.speed import session

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

INTEGER_TYPES = ("int8", "uint8")
"""Types of 8-bit integers, as the runtime's profile names them."""


@dataclass
class Share:
    """The time of one type of operator.

    Attributes:
        operator: its name in the runtime, after fusion.
        integer: whether its first input is integers of 8 bits.
        nodes: number of nodes.
        seconds: per call, of all nodes together.
    """

    operator: str
    integer: bool
    nodes: int = 0
    seconds: float = 0.0


@dataclass
class Profile:
    """Times of all operators, the slowest first. They include the time of measuring each node."""

    batch: int
    shares: list[Share] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Time of a call in all nodes."""
        return sum(share.seconds for share in self.shares)

    @property
    def float_share(self) -> float:
        """Share of the time of nodes whose first input is not integers."""
        return sum(share.seconds for share in self.shares if not share.integer) / self.seconds if self.shares else 0.0


def profile(model: onnx.ModelProto, x: NDArray[Any], threads: int, calls: int) -> Profile:
    """Mean time of each operator on the batch ``x``, over ``calls`` calls after one for warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        one = session(model, threads, Path(folder) / "profile")
        for _ in range(1 + calls):
            one.run([LOGITS], {INPUT: x})
        events = json.loads(Path(one.end_profiling()).read_text(encoding="utf-8"))
    return Profile(len(x), shares(events, calls))


def shares(events: Sequence[Mapping[str, Any]], calls: int) -> list[Share]:
    """Shares by operator and type of its first input, from a profile's events without those of the first call."""
    nodes: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            nodes.setdefault(event["name"], []).append(event)
    found: dict[tuple[str, bool], Share] = {}
    for timed in nodes.values():
        operator = str(timed[0]["args"]["op_name"])
        read = [next(iter(kind)) for kind in timed[0]["args"].get("input_type_shape", [])]
        integer = bool(read) and read[0] in INTEGER_TYPES
        share = found.setdefault((operator, integer), Share(operator, integer))
        share.nodes += 1
        share.seconds += sum(event["dur"] for event in timed[len(timed) // (calls + 1) :]) / 1e6 / calls
    return sorted(found.values(), key=lambda share: -share.seconds)
