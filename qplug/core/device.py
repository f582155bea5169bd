"""The device of a run: its parsing, float32 precision, forward times and memory."""

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
    """The torch device named ``name``; raises ``InputError`` if this machine does not have it."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        what = f"device '{name}' cannot be used: expected a device such as cpu, cuda or cuda:1"
        raise InputError(what, where="--device", fix="use cpu, or cuda for a GPU") from error
    if device.type == "cuda":
        _check_gpu(device)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"device '{name}' cannot be used: {reason}", where="--device", fix="use cpu") from error
    return device


def _check_gpu(device: torch.device) -> None:
    """Raise ``InputError`` for a GPU that this machine does not have."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        built = torch.version.cuda is not None or torch.version.hip is not None
        reason = "torch finds none" if built else f"torch {torch.__version__} is built for CPUs only"
        what = f"device '{device}' cannot be used: this machine has no GPU that torch can use: {reason}"
        raise InputError(what, where="--device", fix="use cpu")
    if device.index is not None and device.index >= count:
        names = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise InputError(f"expected {names}, received '{device}': this machine has {count} GPUs", where="--device")


@contextmanager
def full_float32() -> Iterator[None]:
    """Context in which convolutions on CUDA multiply in float32, as linears on CUDA and every CPU operation do.

    By default, cuDNN rounds their operands to the 10 mantissa bits of TF32. On MobileNetV1 this changes the logits by
    6e-3 of their norm, sixty times the tolerance for a function-preserving step.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def forward_seconds(model: nn.Module, images: Tensor, repeats: int = 2) -> float:
    """Seconds of one forward without gradients: the minimum of ``repeats`` runs after one warm-up run."""
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
    """Reset the peak that ``peak_memory_mb`` returns, so that it excludes earlier runs of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux has this file; on other systems the peak covers the whole process
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory since ``forget_peak_memory``, in MB of 10^6 bytes: resident on a CPU, allocated on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with suppress(OSError):  # Linux, whose getrusage also counts the resident memory of the parent process
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def fits(bytes_: int, device: torch.device) -> bool:
    """Whether ``bytes_`` may be stored on ``device`` during a run: at most half of the free memory of a CUDA device."""
    import torch

    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return bytes_ <= (free + unused) // 2
