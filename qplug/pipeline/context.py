"""What every stage of a run works with: techniques, backend, cache, clock, device and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qplug.core.component import Technique
from qplug.core.device import forget_peak_memory, full_float32, parse_device
from qplug.core.distributed import Processes, launched
from qplug.core.storage.cache import Cache
from qplug.core.storage.run_folder import check_target
from qplug.core.types import Advance, BackendOffer
from qplug.hooks.caller import TechniqueCaller
from qplug.hooks.registry import Registry, backend_of, component, installed
from qplug.pipeline.clock import Clock
from qplug.pipeline.result_cache import ResultCache
from qplug.quantization.backends import Backend

if TYPE_CHECKING:
    from qplug.recipe import Recipe


@dataclass
class RunContext:
    """The tools of one run; it holds none of its results.

    Attributes:
        caller: the techniques of the recipe, one instance each.
        registry: what is installed.
        backend: executes the plan.
        offer: what the backend can execute.
        clock: times stages and tells observers.
        results: the cache of statistics, outputs, quantizers and trainings.
        device: where it computes.
        seed: the recipe's.
        processes: this process among those that share the run.
        out: the run folder to write, in the process that writes.
        warnings: one sentence each, for the reader of the results.
    """

    caller: TechniqueCaller
    registry: Registry
    backend: Backend
    offer: BackendOffer
    clock: Clock
    results: ResultCache
    device: torch.device
    seed: int
    processes: Processes = field(default_factory=Processes)
    out: Path | None = None
    warnings: list[str] = field(default_factory=list)

    @classmethod
    @contextmanager
    def open(
        cls,
        recipe: Recipe,
        out: Path | None,
        device: str,
        registry: Registry | None,
        observers: Sequence[object],
        cache: Cache | None,
    ) -> Iterator[RunContext]:
        """The context of a run of ``recipe``. Within it convolutions on CUDA multiply in float32.

        Raises:
            InputError: the folder exists, the device is not there, or the backend lacks a package.
        """
        processes = launched()
        if out is not None:
            check_target(out)
        registry = registry or installed()
        techniques = [component(registry.techniques, step) for step in recipe.techniques]
        here = processes.device(device)
        with cls.of(techniques, recipe.backend, recipe.seed, here, registry, observers, cache) as ctx:
            ctx.processes, ctx.out = processes, out if processes.is_main else None
            ctx.warnings += [processes.note] if processes.note else []
            yield ctx

    @classmethod
    @contextmanager
    def of(
        cls,
        techniques: Sequence[Technique] = (),
        backend: str = "brevitas",
        seed: int = 0,
        device: str = "cpu",
        registry: Registry | None = None,
        observers: Sequence[object] = (),
        cache: Cache | None = None,
    ) -> Iterator[RunContext]:
        """The context of whoever calls some stages alone: analyses, and loading a run."""
        registry = registry or installed()
        where = parse_device(device)
        forget_peak_memory(where)
        offer, executor = registry.backends[backend], backend_of(backend, registry)  # its import is no part of a stage
        caller = TechniqueCaller(techniques, registry, seed, observers)
        clock = Clock(caller)
        results = ResultCache(cache, clock, registry.quantizers)
        with full_float32():
            yield cls(caller, registry, executor, offer, clock, results, where, seed)

    def stage(self, name: str, total: int = 0) -> AbstractContextManager[Advance]:
        """Time one stage and tell observers; it yields a function that is told the units done so far."""
        return self.clock.stage(name, total)
