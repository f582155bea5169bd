"""The parity gate: whether a runtime computes what was simulated, operation by operation and at the logits.

Rounding amplifies whatever the last bit of a sum was, so logits alone prove little: where every operation's output
moves by 1e-6 of itself, the logits of DeiT-Ti's own simulation move by 3.7 % at W8A8, and by 25 % at 5 bits on average;
those of ONNX Runtime differ by 3.7 % and 23 %. So the simulation is led along the runtime's values. Each operation gets
the operands that the runtime's had; its output is compared with the runtime's, and replaced by it. Nothing adds up on
the way, and what lies between two operations is compared too, as operands. Kernels that a runtime makes of several
operations are compared where only some outputs are shown (``fused``), and the file as it is by its logits and top-1.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import comb, inf, log10
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.errors import ParityError
from qplug.core.task import CLASSIFICATION, Task
from qplug.export.calls import INPUT, LOGITS, Call
from qplug.export.parity.differences import Difference
from qplug.export.parity.fused import FUSED, allowed, along, settle
from qplug.export.runtimes import Runtime
from qplug.quantization.plan import Plan
from qplug.quantization.quantizers import Quantizer, RegionQuantizer, UniformQuantizer

EXACT = 1e-4
"""Largest norm of a difference where both sides round the same quotient. Measured: 1e-6 at most."""
TIES = 1e-3
"""The same where a tie may round the other way: a zero point is added before rounding here and after it in ONNX, and
logarithms are other approximations. Measured: 2e-4 at 8 bits. Below 6 bits ``_limit`` allows more: there one step in
3e-5 of the operands is 8e-3 at 2 bits, and half of it with each further bit."""
JOINED = 1e-2
"""The same of what an operation reads of several that are one in the file: in attention, ties of queries and keys,
which Softmax amplifies, of probabilities and of values. Measured on ViT-Ti at 8 bits: 4.4e-3 of eight images,
6.1e-3 of four."""
LOGITS_MOVE, NOISE = 1e-2, 1e-6
"""Free logits may differ by ``LOGITS_MOVE`` of their norm and by what ``fused.allowed`` adds for chaos: what the
simulation's own logits move by where every operation's output moves by ``NOISE`` of itself."""
BY_CHANCE = 1e-3
"""Top-1 agreement is refused where noise alone costs as many images fewer often than this."""

FREE, TOP1 = "free run", "top-1"


@dataclass
class Parity:
    """What the gate found.

    Attributes:
        places: (operation, ``input`` | ``lhs`` | ``rhs`` | ``output``) → how far it differs, in the order of the model;
            the last is that of the logits, with the operation "".
        fused: operation → how far its output differs where few outputs are shown; "" are the logits.
        free: of the logits where both run on their own.
        chaos: of the simulation's own logits where rounding noise is added, relative to their norm.
        images: compared.
        batches: sizes that were run.
        agreeing: images with the simulation's top-1.
        steady: images whose top-1 the noise of ``chaos`` leaves as it is.
        joined: planned operations that the file has no call of, so that only what reads them is compared.
    """

    places: dict[tuple[str, str], Difference] = field(default_factory=dict)
    fused: dict[str, Difference] = field(default_factory=dict)
    free: Difference = field(default_factory=lambda: Difference(inf, share=1.0))
    chaos: float = 0.0
    images: int = 0
    batches: list[int] = field(default_factory=list)
    agreeing: int = 0
    steady: int = 0
    joined: list[str] = field(default_factory=list)

    @property
    def first_wrong(self) -> tuple[str, str] | None:
        """The first place that does not agree; where each does, the first operation whose output does not where
        kernels are fused (``FUSED``); then ("", ``FREE``) of free logits, and ("", ``TOP1``)."""
        if not self.images:
            raise ValueError("nothing was compared: there were no images")
        fused = {(operation, FUSED): difference for operation, difference in self.fused.items()}
        compared = self.places | fused | {("", FREE): self.free}
        wrong = next((place for place, difference in compared.items() if not difference.agrees), None)
        return wrong or (None if self._by_chance >= BY_CHANCE else ("", TOP1))

    @property
    def _by_chance(self) -> float:
        """Fisher's exact test, one-sided: whether as many images change their top-1 as noise changes."""
        n, theirs, ours = self.images, self.images - self.agreeing, self.images - self.steady
        ways = sum(comb(n, k) * comb(n, theirs + ours - k) for k in range(theirs, min(n, theirs + ours) + 1))
        return ways / comb(2 * n, theirs + ours)

    def summary(self) -> dict[str, Any]:
        """What a file's metadata say of it."""
        worst = max(self.places.values(), key=lambda difference: difference.norm)
        return {
            "images": self.images,
            "batches": self.batches,
            "top1_agreement": self.agreeing / self.images,
            "logits_largest_difference": self.free.largest,
            "logits_norm_of_difference": self.free.norm,
            "logits_sqnr_db": 10.0 * log10(self.free.signal / self.free.noise)
            if self.free.signal and self.free.noise
            else None,
            "logits_norm_of_difference_by_rounding_noise": self.chaos,
            "top1_agreement_by_rounding_noise": self.steady / self.images,
            "fused_largest_norm_of_difference": max((one.norm for one in self.fused.values()), default=None),
            "operations_largest_norm_of_difference": worst.norm,
            "operations_joined": self.joined,
        }


def compare(
    runtime: Runtime,
    simulation: nn.Module,
    plan: Plan,
    batches: Iterable[Tensor],
    joined: Mapping[str, Sequence[str]] | None = None,
    task: Task = CLASSIFICATION,
) -> Parity:
    """Run both on ``batches``, and the first image alone.

    Args:
        runtime: executes the file.
        simulation: the quantized model on the CPU, within its backend's ``inference``.
        plan: of it.
        batches: inputs of the model, (B, …).
        joined: operation → those before it that are one in the file and have no call; ``None``: all have one.

    Raises:
        ParityError: an operation has no call and is not among ``joined``, or is not called as often as simulated.
    """
    joined = joined or {}
    parity = Parity(joined=[path for paths in joined.values() for path in paths])
    called = {call.operation for call in runtime.calls} | set(parity.joined)
    for path in plan.modules():
        if path not in called:
            raise _unequal(path)
    limits = {path: max(map(_limit, plan.of(path).values())) for path in plan.modules()}
    moved: dict[str, Difference] = defaultdict(lambda: Difference(inf))
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
        moved[FREE].add(ours, noisy)
        parity.steady += task.agreement(ours, noisy)
        for values in runtime.watch(x):
            _along(values, runtime.calls, simulation, limits, joined, parity.places)
        for values in runtime.fused(x):
            noise = partial(_noise, simulation, limits, generator)
            for operation, one, their, other in along(values, runtime.calls, simulation, noise):
                parity.fused.setdefault(operation, Difference(inf)).add(one, their)
                moved[operation].add(one, other)
    ties = 2 * max([TIES, *limits.values()])  # of an operation that is not shown, and of one that is
    for operation, difference in parity.fused.items():
        settle(difference, ties, moved[operation])
    parity.chaos = moved[FREE].norm
    parity.free.limit = allowed(LOGITS_MOVE, parity.chaos)
    return parity


def _limit(quantizer: Quantizer) -> float:
    """Of what one quantizer's rounding may do to its operation's output."""
    if isinstance(quantizer, RegionQuantizer) or (isinstance(quantizer, UniformQuantizer) and quantizer.symmetric):
        return EXACT  # a quotient is rounded, and nothing else that two libraries could compute differently
    return max(TIES, 0.04 * 2.0**-quantizer.bits)


def _along(
    values: dict[str, Tensor],
    calls: Iterable[Call],
    simulation: nn.Module,
    limits: dict[str, float],
    joined: Mapping[str, Sequence[str]],
    places: dict[tuple[str, str], Difference],
) -> None:
    """Lead the simulation along the runtime's values, and add up how far it differs."""
    waiting: dict[str, deque[Call]] = defaultdict(deque)
    for call in calls:
        waiting[call.operation].append(call)

    def compared(path: str, what: str, ours: Tensor, theirs: Tensor, limit: float) -> None:
        places.setdefault((path, what), Difference(limit)).add(ours, theirs)

    def enter(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            if not waiting[path]:
                raise _unequal(path)
            theirs = [values[name] for name in waiting[path][0].inputs]
            roles = ("input",) if len(theirs) == 1 else ("lhs", "rhs")
            for what, ours, their in zip(roles, args, theirs, strict=False):
                compared(path, what, ours, their, JOINED if path in joined else TIES)
            return (*theirs, *args[len(theirs) :])

        return hook

    def leave(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            theirs = values[waiting[path].popleft().output]
            compared(path, "output", out, theirs, limits[path])
            return theirs.clone()  # what follows may write to it

        return hook

    with ExitStack() as stack:
        for path in waiting:
            module = simulation.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(enter(path)).remove)
            stack.callback(module.register_forward_hook(leave(path)).remove)
        compared("", LOGITS, simulation(values[INPUT]), values[LOGITS], EXACT)
    for path, left in waiting.items():
        if left:
            raise _unequal(path)


def _unequal(path: str) -> ParityError:
    return ParityError(
        "the file and the simulation do not call this operation equally often",
        where=path,
        fix="nothing was written; --no-verify writes the file all the same and says so in it",
    )


@contextmanager
def _noise(simulation: nn.Module, paths: Iterable[str], generator: torch.Generator) -> Iterator[None]:
    """Within it, every operation's output moves by ``NOISE`` of itself."""

    def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        return out * (1.0 + NOISE * torch.randn(out.shape, generator=generator))

    handles = [simulation.get_submodule(path).register_forward_hook(hook) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
