"""Which process of how many this is, where a launcher started several. Importing this imports nothing heavy.

Launchers (``accelerate launch``, ``torchrun``) speak to the processes that they start through the environment alone:
this is the only place that listens, and what it hears changes who writes and prints, never what is computed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from qplug.errors import InputError


@dataclass(frozen=True)
class Processes:
    """This process among all that work on one run.

    Attributes:
        index: of this one, from 0.
        count: of all.
        local: index among those of this machine, which says whose GPU is whose.
    """

    index: int = 0
    count: int = 1
    local: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.index == 0

    def device(self, name: str) -> str:
        """The device of this process where ``name`` is asked for: of several, each has a GPU of its own."""
        return f"cuda:{self.local}" if self.count > 1 and name == "cuda" else name


def launched() -> Processes:
    """What the launcher said; one process where there was none.

    Raises ``InputError`` where it said something else than whole numbers.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    said = [os.environ.get(name) for name in names]
    if said[1] is None:
        return Processes()
    try:
        index, count, local = (int(value or 0) for value in said)
    except ValueError:
        what = f"expected whole numbers from the launcher, received {dict(zip(names, said, strict=True))}"
        raise InputError(what, fix="start the processes by 'accelerate launch' or 'torchrun'") from None
    return Processes(index, count, local)
