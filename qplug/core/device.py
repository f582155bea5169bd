"""Where and how long a run computes: device, backend, stages, timing, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError


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


def fits(bytes_: int, device: torch.device) -> bool:
    """Whether so much may be kept on ``device`` beside what computes there: on a CUDA device half of what is free."""
    import torch

    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return bytes_ <= (free + unused) // 2
