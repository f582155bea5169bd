"""Which process of how many this is, where a launcher started several. Importing this imports nothing heavy.

Launchers (``accelerate launch``, ``torchrun``, ``mpirun``) speak to what they start through the environment
alone: this is the only place that listens, and what it hears changes who writes and prints, never what is computed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from qplug.core.errors import InputError

RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LOCAL = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
"""Names under which torch's launchers, Intel's MPI, Open MPI and MVAPICH say it; accelerate reads the same."""


@dataclass(frozen=True)
class Processes:
    """This process among all that work on one run.

    Attributes:
        index: of this one, from 0.
        count: of all.
        local: index among those of this machine, which says whose GPU is whose.
        note: what a reader of the results must know about the launch, or empty.
    """

    index: int = 0
    count: int = 1
    local: int = 0
    note: str = ""

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
    count = _said(COUNT, 1)
    if count > 1:
        return Processes(_said(RANK, 0), count, _said(LOCAL, 0))
    if "MASTER_ADDR" in os.environ and not any(name in os.environ for name in COUNT):
        return Processes(note=ALONE)
    return Processes()


ALONE = (
    "the launcher spoke of several processes and started one: on CPUs 'accelerate launch' needs --mpirun_hostfile; "
    "'torchrun --nproc_per_node 2 -m qplug run …' needs nothing"
)


def _said(names: tuple[str, ...], otherwise: int) -> int:
    name = next((name for name in names if name in os.environ), None)
    try:
        return otherwise if name is None else int(os.environ[name])
    except ValueError:
        what = f"the launcher says {name}={os.environ[str(name)]}, and a whole number was expected"
        raise InputError(what, fix="start the processes by 'accelerate launch' or 'torchrun'") from None
