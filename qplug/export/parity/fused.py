"""Comparison behind fused kernels: a session that returns few values can fuse across all others.

A runtime that returns every operation's output executes no kernel across two operations, but the exported file does.
Here some outputs are returned at a time, and the simulation continues from those alone. Between two of them, both sides
run on their own, and rounding noise grows. Its growth is measured on the simulation.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from torch import Tensor, nn

from qplug.export.calls import INPUT, LOGITS, Call
from qplug.export.parity.differences import OutputDifference

FUSED = "fused output"
"""Role of an output behind fused kernels in ``Parity.first_wrong``."""
NOISE_FACTOR, LARGEST_FOR_NOISE, LARGEST_LIMIT = 4.0, 0.25, 0.9
"""Bounds of ``limit_behind``: multiple of the measured noise, largest limit apart from it, and largest limit.

A runtime that returns zeros differs by 1 of the norm, so every limit stays below it.
"""


def outputs_behind(
    values: Mapping[str, Tensor],
    calls: Sequence[Call],
    simulation: nn.Module,
    noise: Callable[[], AbstractContextManager[None]],
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Run the simulation from one returned output to the next, once unchanged and once with rounding noise.

    Args:
        values: input, logits and some outputs of one batch, from the runtime.
        calls: all calls of the file.
        simulation: the quantized model.
        noise: context in which every operation's output has rounding noise.

    Yields:
        For each returned output and for the logits: the operation ("" for the logits), and the values of the
        simulation, of the runtime, and of the simulation with noise.
    """
    ours = _continued(values, calls, simulation)
    with noise():
        noisy = _continued(values, calls, simulation)
    for operation, name in [*((call.operation, call.output) for call in calls), ("", LOGITS)]:
        if name in ours:
            yield operation, ours[name], values[name], noisy[name]


def _continued(values: Mapping[str, Tensor], calls: Sequence[Call], simulation: nn.Module) -> dict[str, Tensor]:
    """Name → the simulation's value. The simulation continues from the runtime's value of the same name."""
    waiting: dict[str, deque[str]] = defaultdict(deque)
    for call in calls:
        waiting[call.operation].append(call.output)
    found: dict[str, Tensor] = {}

    def output_hook(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            name = waiting[path].popleft()
            if name not in values:
                return out
            found[name] = out
            return values[name].clone()  # the next operation may write to it

        return hook

    with ExitStack() as stack:
        for path in waiting:
            stack.callback(simulation.get_submodule(path).register_forward_hook(output_hook(path)).remove)
        found[LOGITS] = simulation(values[INPUT])
    return found


def limit_behind(base: float, noise: float) -> float:
    """The largest difference behind several operations that counts as rounding, relative to the norm.

    Args:
        base: limit without noise.
        noise: change of the simulation's own values if every operation's output moves by 1e-6 of itself.

    Returns:
        ``base + NOISE_FACTOR · noise``, at most ``LARGEST_FOR_NOISE + noise``, and at most ``LARGEST_LIMIT``.
    """
    return min(base + NOISE_FACTOR * noise, LARGEST_FOR_NOISE + noise, LARGEST_LIMIT)


def set_limits(difference: OutputDifference, base: float, noise: OutputDifference) -> None:
    """Set the limits of a difference behind fused kernels from ``base`` and the measured ``noise``."""
    difference.limit = limit_behind(base, noise.norm)
    difference.share = difference.share if noise.off <= difference.share / 2 else 1.0
