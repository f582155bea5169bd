"""Random seeds made of a key, so that draws do not depend on earlier draws."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """Context in which torch's generators on every device are seeded from ``key``; it restores their states.

    ``torch.manual_seed`` is avoided. While CUDA is not initialized, each of its calls queues a call with a stack
    trace. A run that seeds some thousand times then spends minutes on the queue.
    """
    import torch

    seed = zlib.crc32(":".join(map(str, key)).encode())
    cuda = bool(torch.cuda.is_initialized())
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        yield
