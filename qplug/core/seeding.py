"""Seeding: randomness that depends on what is done, never on what was done before."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """Within it, torch draws from a seed made of ``key``, on every device; afterwards its generators are as before.

    ``torch.manual_seed`` is avoided: where CUDA is not initialized it queues a call with a stack trace each time, and a
    run that seeds some thousand times then spends minutes on the queue.
    """
    import torch

    seed = zlib.crc32(":".join(map(str, key)).encode())
    cuda = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        yield
