"""Rank and number of the processes that a launcher started. Importing this module does not import torch.

Launchers (``accelerate launch``, ``torchrun``, ``mpirun``) pass both as environment variables, and only this module
reads them. The rank decides which process writes and prints; it does not change the results.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from qplug.core.errors import InputError

RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LOCAL = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
"""Environment variables set by torch's launchers, Intel MPI, Open MPI and MVAPICH; accelerate reads the same."""


@dataclass(frozen=True)
class Processes:
    """The rank of this process among all processes of one run.

    Attributes:
        index: rank of this process, from 0.
        count: number of processes.
        local: rank among the processes of this machine, which is also the index of this process's GPU.
        note: a warning about the launch, or empty.
    """

    index: int = 0
    count: int = 1
    local: int = 0
    note: str = ""

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.index == 0

    def device(self, name: str) -> str:
        """Device of this rank: ``cuda`` becomes ``cuda:<local rank>`` if several processes were launched."""
        return f"cuda:{self.local}" if self.count > 1 and name == "cuda" else name


def launched() -> Processes:
    """Rank and number of processes from the launcher's environment variables; one process without a launcher.

    Raises ``InputError`` if one of the variables is not an integer.
    """
    count = _variable(COUNT, 1)
    if count > 1:
        return Processes(_variable(RANK, 0), count, _variable(LOCAL, 0))
    if "MASTER_ADDR" in os.environ and not any(name in os.environ for name in COUNT):
        return Processes(note=ALONE)
    return Processes()


ALONE = (
    "the launcher was configured for several processes and started one: on CPUs 'accelerate launch' needs "
    "--mpirun_hostfile; 'torchrun --nproc_per_node 2 -m qplug run …' needs no further option"
)


def _variable(names: tuple[str, ...], otherwise: int) -> int:
    """The first of these environment variables that is set, as an integer; ``otherwise`` if none is set."""
    name = next((name for name in names if name in os.environ), None)
    try:
        return otherwise if name is None else int(os.environ[name])
    except ValueError:
        what = f"expected an integer in the launcher's variable {name}, received '{os.environ[str(name)]}'"
        raise InputError(what, fix="start the processes by 'accelerate launch' or 'torchrun'") from None
