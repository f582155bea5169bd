"""How this process's memory is managed. Importing this does not import torch."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

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
