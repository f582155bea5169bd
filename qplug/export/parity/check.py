"""The parity check: whether a runtime computes the simulation's values, operation by operation and at the logits.

Rounding amplifies the last bit of every sum, so logits alone prove little. Let every operation's output move by 1e-6 of
itself: the logits of DeiT-Ti's simulation then move by 3.7 % at W8A8, and by 25 % at 5 bits on average. Those of ONNX
Runtime differ by 3.7 % and 23 %.

The simulation therefore continues from the runtime's values. Each operation receives the runtime's operands. Its output
is compared with the runtime's and replaced by it. Differences do not add up this way. The computation between two
operations is compared too, as operands. Kernels across operations are compared in sessions that return few outputs
(``fused``). The unchanged file is compared by its logits and its top-1.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.errors import ParityError
from qplug.core.task import CLASSIFICATION, Task
from qplug.export.calls import INPUT, LOGITS, Call
from qplug.export.parity.differences import OutputDifference
from qplug.export.parity.fused import limit_behind, outputs_behind, set_limits
from qplug.export.parity.refusal import FIX
from qplug.export.parity.result import FREE_RUN, Parity
from qplug.export.runtimes.base import Runtime
from qplug.quantization.plan import Plan
from qplug.quantization.quantizers import Quantizer, RegionQuantizer, UniformQuantizer

QUOTIENT_LIMIT = 1e-4
"""Largest norm of a difference if both sides round the same quotient. Measured: 1e-6 at most."""
TIE_LIMIT = 1e-3
"""Largest norm of a difference if a tie may round the other way. Measured: 2e-4 at 8 bits.

A zero point is added before rounding here and after it in ONNX, and runtimes approximate logarithms differently.
Below 6 bits ``_limit`` allows more: one step in 3e-5 of the operands is 8e-3 at 2 bits, and half of it per further bit.
"""
JOINED_LIMIT = 1e-2
"""Largest norm of a difference of an operand that several merged operations compute in the file.

In attention these are ties of queries and keys, which Softmax amplifies, of probabilities and of values.
Measured on ViT-Ti at 8 bits: 4.4e-3 with eight images, 6.1e-3 with four.
"""
FREE_LOGITS_LIMIT = 1e-2
"""Largest norm of a difference of free logits without noise; ``limit_behind`` adds to it for the measured noise."""
ROUNDING_NOISE = 1e-6
"""Standard deviation of the noise on every operation's output, relative to that output."""


def check_parity(
    runtime: Runtime,
    simulation: nn.Module,
    plan: Plan,
    batches: Iterable[Tensor],
    joined: Mapping[str, Sequence[str]] | None = None,
    task: Task = CLASSIFICATION,
) -> Parity:
    """Run a file and the simulation on ``batches``, and on the first image alone.

    Args:
        runtime: executes the file.
        simulation: the quantized model on the CPU, within its backend's ``inference``.
        plan: of the simulation.
        batches: inputs of the model, (B, …).
        joined: operation → the operations before it that the file merges, which have no call; ``None``: none.

    Raises:
        ParityError: an operation outside ``joined`` has no call, or the simulation calls it more or less often.
    """
    joined = joined or {}
    parity = Parity(joined=[path for paths in joined.values() for path in paths])
    called = {call.operation for call in runtime.calls} | set(parity.joined)
    for path in plan.modules():
        if path not in called:
            raise _unequal(path)
    limits = {path: max(map(_limit, plan.of(path).values())) for path in plan.modules()}
    noise: dict[str, OutputDifference] = defaultdict(lambda: OutputDifference(inf))
    generator = torch.Generator().manual_seed(0)
    for x in batches:
        for part in [x] if parity.images else [x[:1], x]:
            theirs, ours = runtime.logits(part), simulation(part)
            parity.free.add(ours, theirs)
            parity.batches += [len(part)] if len(part) not in parity.batches else []
        parity.images += len(x)
        parity.agreeing += task.agreement(ours, theirs)
        with _noise(simulation, limits, generator):
            noisy = simulation(x)
        noise[FREE_RUN].add(ours, noisy)
        parity.steady += task.agreement(ours, noisy)
        for values in runtime.watch(x):
            _compare_operations(values, runtime.calls, simulation, limits, joined, parity.places)
        for values in runtime.fused(x):
            with_noise = partial(_noise, simulation, limits, generator)
            for operation, one, their, other in outputs_behind(values, runtime.calls, simulation, with_noise):
                parity.fused.setdefault(operation, OutputDifference(inf)).add(one, their)
                noise[operation].add(one, other)
    ties = 2 * max([TIE_LIMIT, *limits.values()])  # one of a hidden operation, and one of a returned operation
    for operation, difference in parity.fused.items():
        set_limits(difference, ties, noise[operation])
    parity.rounding_noise = noise[FREE_RUN].norm
    parity.free.limit = limit_behind(FREE_LOGITS_LIMIT, parity.rounding_noise)
    return parity


def _limit(quantizer: Quantizer) -> float:
    """Largest difference that the quantizer's rounding may cause in its operation's output."""
    if isinstance(quantizer, RegionQuantizer) or (isinstance(quantizer, UniformQuantizer) and quantizer.symmetric):
        return QUOTIENT_LIMIT  # it rounds a quotient, which two libraries compute alike
    return max(TIE_LIMIT, 0.04 * 2.0**-quantizer.bits)


def _compare_operations(
    values: dict[str, Tensor],
    calls: Iterable[Call],
    simulation: nn.Module,
    limits: dict[str, float],
    joined: Mapping[str, Sequence[str]],
    places: dict[tuple[str, str], OutputDifference],
) -> None:
    """Run the simulation along the runtime's ``values``, and add each operation's differences to ``places``."""
    waiting: dict[str, deque[Call]] = defaultdict(deque)
    for call in calls:
        waiting[call.operation].append(call)

    def compare(path: str, role: str, ours: Tensor, theirs: Tensor, limit: float) -> None:
        places.setdefault((path, role), OutputDifference(limit)).add(ours, theirs)

    def input_hook(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            if not waiting[path]:
                raise _unequal(path)
            theirs = [values[name] for name in waiting[path][0].inputs]
            roles = ("input",) if len(theirs) == 1 else ("lhs", "rhs")
            for role, ours, their in zip(roles, args, theirs, strict=False):
                compare(path, role, ours, their, JOINED_LIMIT if path in joined else TIE_LIMIT)
            return (*theirs, *args[len(theirs) :])

        return hook

    def output_hook(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            theirs = values[waiting[path].popleft().output]
            compare(path, "output", out, theirs, limits[path])
            return theirs.clone()  # the next operation may write to it

        return hook

    with ExitStack() as stack:
        for path in waiting:
            module = simulation.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(input_hook(path)).remove)
            stack.callback(module.register_forward_hook(output_hook(path)).remove)
        compare("", LOGITS, simulation(values[INPUT]), values[LOGITS], QUOTIENT_LIMIT)
    for path, left in waiting.items():
        if left:
            raise _unequal(path)


def _unequal(path: str) -> ParityError:
    return ParityError(
        "expected as many calls of this operation in the file as in the simulation, received another number",
        where=path,
        fix=FIX,
    )


@contextmanager
def _noise(simulation: nn.Module, paths: Iterable[str], generator: torch.Generator) -> Iterator[None]:
    """Within it, the operations at ``paths`` return outputs with noise of ``ROUNDING_NOISE``."""

    def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        return out * (1.0 + ROUNDING_NOISE * torch.randn(out.shape, generator=generator))

    handles = [simulation.get_submodule(path).register_forward_hook(hook) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
