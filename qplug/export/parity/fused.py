"""What a runtime fuses, compared where it can be: a session that shows few values fuses across all the others.

A runtime that shows every operation's output executes no kernel that goes across two operations, and the file that is
used does. So some outputs are shown at a time, the simulation is led along those alone, and what lies between two of
them runs on its own on both sides. Rounding noise grows there; how far, is measured on the simulation.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from torch import Tensor, nn

from qplug.export.calls import INPUT, LOGITS, Call
from qplug.export.parity.differences import Difference

FUSED = "fused output"


def along(
    values: Mapping[str, Tensor],
    calls: Sequence[Call],
    simulation: nn.Module,
    noise: Callable[[], AbstractContextManager[None]],
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Lead the simulation along the outputs that a runtime showed, once as it is and once with noise.

    Args:
        values: input, logits and some outputs, of one batch.
        calls: all of the file.
        simulation: the quantized model.
        noise: within it every operation's output moves a little.

    Yields:
        Of each output that is shown and of the logits: operation ("" for the logits), and what the simulation, the
        runtime and the simulation with noise give.
    """
    ours = _led(values, calls, simulation)
    with noise():
        moved = _led(values, calls, simulation)
    for operation, name in [*((call.operation, call.output) for call in calls), ("", LOGITS)]:
        if name in ours:
            yield operation, ours[name], values[name], moved[name]


def _led(values: Mapping[str, Tensor], calls: Sequence[Call], simulation: nn.Module) -> dict[str, Tensor]:
    """Name → the simulation's value, behind which the runtime's goes on."""
    waiting: dict[str, deque[str]] = defaultdict(deque)
    for call in calls:
        waiting[call.operation].append(call.output)
    found: dict[str, Tensor] = {}

    def leave(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            name = waiting[path].popleft()
            if name not in values:
                return out
            found[name] = out
            return values[name].clone()  # what follows may write to it

        return hook

    with ExitStack() as stack:
        for path in waiting:
            stack.callback(simulation.get_submodule(path).register_forward_hook(leave(path)).remove)
        found[LOGITS] = simulation(values[INPUT])
    return found


def allowed(base: float, moved: float) -> float:
    """How far values may differ behind several operations.

    Args:
        base: of the norm, without noise.
        moved: of the norm, what the simulation's own values move by where every operation's output moves by 1e-6.

    Returns:
        ``base`` and ``CHAOS`` times ``moved``, and where noise moves much never above ``MOST`` and ``moved``, nor
        ``VACUOUS``: zeros differ by 1.
    """
    return min(base + CHAOS * moved, MOST + moved, VACUOUS)


CHAOS, MOST, VACUOUS = 4.0, 0.25, 0.9


def settle(difference: Difference, base: float, moved: Difference) -> None:
    """Set the limits of what runs on its own by what noise does to it."""
    difference.limit = allowed(base, moved.norm)
    difference.share = difference.share if moved.off <= difference.share / 2 else 1.0
