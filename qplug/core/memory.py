"""How this process's memory is managed, where the operating system lets a program choose."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free for the next ones, instead of giving it back to the system at once.

    PyTorch allocates and frees tens of megabytes at every operation, and each page that comes back from the system is
    a fault: 340,000 in one fake-quantized forward of ViT-Ti at batch 32, a third of its time (the float forward lost a
    quarter). A program may decide this for its process, a library may not: only the command line calls it. Nothing
    happens where the C library is another one.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 2**30)


def fits(bytes_: int, device: torch.device) -> bool:
    """Whether so much may be kept on ``device`` beside what computes there: on a CUDA device half of what is free."""
    import torch

    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return bytes_ <= (free + unused) // 2
