"""Where and how long a run computes: device, backend, stages, timing, memory."""

from __future__ import annotations

import importlib
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError
from qplug.hooks.caller import Steps
from qplug.hooks.registry import Registry
from qplug.quantization.backends import Backend


class Advance(Protocol):
    """Told how far a stage is: units done so far, and a few words."""

    def __call__(self, done: int, note: str = "") -> None:
        """``done`` units."""


class Clock:
    """Times the stages of a run and tells the observers.

    What a cache answered counts as long as it once took to compute, so that the times of two runs can be compared;
    ``saved`` is how much of that this run did not spend.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._start = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.saved = 0.0

    @contextmanager
    def stage(self, name: str, total: int = 0) -> Iterator[Advance]:
        """One stage; what it yields is called with the units done so far."""
        self._steps.observe(name, "start", 0, total)
        start, saved = time.perf_counter(), self.saved

        def advance(done: int, note: str = "") -> None:
            self._steps.observe(name, "advance", done, total, note)

        try:
            yield advance
        finally:
            self.seconds[name] = time.perf_counter() - start + self.saved - saved
            self._steps.observe(name, "end", total, total)

    def save(self, seconds: float) -> None:
        """Count what was not computed again."""
        self.saved += seconds

    @property
    def total(self) -> float:
        """Seconds since the run began, and those that were saved."""
        return time.perf_counter() - self._start + self.saved


def parse_device(name: str) -> torch.device:
    """The device of that name, if this machine has it; raises ``InputError``."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device '{name}' cannot be used: {str(error).splitlines()[0]}", where="--device", fix="use cpu, or cuda:0"
        ) from error
    return device


@contextmanager
def full_float32() -> Iterator[None]:
    """Within it, convolutions on CUDA multiply in float32, as linears do anyway and a CPU does both.

    By default cuDNN rounds their operands to the 10 bits of TF32: on MobileNetV1 that alone moves the logits by 6e-3 of
    their norm, sixty times what a step that preserves the function may.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def backend_of(name: str, registry: Registry) -> Backend:
    """The backend of that name; raises ``InputError`` where something that it needs is not installed."""
    offer = registry.backends[name]
    for extra in offer.needs:
        if extra.missing:
            raise InputError(f"backend '{name}' needs the package '{extra.module}'", fix=extra.install)
    module, _, cls = offer.path.partition(":")
    backend: Backend = getattr(importlib.import_module(module), cls)()
    return backend


def forward_seconds(model: nn.Module, images: Tensor, repeats: int = 2) -> float:
    """Seconds of one forward without gradients: the least of ``repeats`` after one that warms up."""
    seconds = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            _synchronize(images.device)
            start = time.perf_counter()
            model(images)
            _synchronize(images.device)
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak_memory(device: torch.device) -> None:
    """Let ``peak_memory_mb`` count from here, so that a run does not inherit the peak of one before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux has this file; elsewhere the peak stays that of the whole process
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory since ``forget_peak_memory``, 10^6 bytes to the MB: resident on a CPU, allocated on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with suppress(OSError):  # Linux; its getrusage counts what the process that started this one had resident
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
