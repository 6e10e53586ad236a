"""How many processes were started for one command, as torchrun, accelerate, SLURM and MPI tell each of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from .errors import OutputError

# (rank, number): what `torchrun`, `accelerate launch` and operators of Kubernetes set comes first, as the others may
# have started them. SLURM's is that of a step: a batch script has numbers too, and is one process.
NAMES = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
LOCAL_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
STARTED: ContextVar[tuple[subprocess.Popen[bytes], ...]] = ContextVar("started", default=())  # by this one, to share


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process among those of one command.

    Attributes:
        rank: Its place, from 0.
        count: Their number.
        local_rank: Its place among those on this machine; None where nobody says.
        local_count: Their number on this machine, 1 where nobody says.
    """

    rank: int = 0
    count: int = 1
    local_rank: int | None = None
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one speaks for all."""
        return self.rank == 0


def launched(environment: Mapping[str, str] | None = None) -> Launch:
    """Return this process's place among those that a launcher started.

    Raises:
        OutputError: What the environment says makes no sense.
    """
    given = os.environ if environment is None else environment
    for rank, count in NAMES:
        if given.get(count) and not given.get(rank) and _number(given, count) > 1:  # each would do all of the work
            raise OutputError(
                f"`{count}` is {given[count]} in the environment, and `{rank}` is not set",
                hint=f"`{rank}` is the place of this process among them, from 0",
            )
        if given.get(rank) and given.get(count):
            found = _number(given, rank), _number(given, count)
            if not 0 <= found[0] < found[1]:
                raise OutputError(f"`{rank}` is {given[rank]} and `{count}` {given[count]} in the environment")
            local = [_number(given, name) for name in LOCAL_RANKS if given.get(name)]
            sizes = [_number(given, name) for name in LOCAL_SIZES if given.get(name)]
            return Launch(
                rank=found[0],
                count=found[1],
                local_rank=local[0] if local else None,
                local_count=max(1, sizes[0]) if sizes else 1,
            )
    return Launch()


def _number(given: Mapping[str, str], name: str) -> int:
    try:
        return int(given[name])
    except ValueError:
        raise OutputError(f"`{name}` in the environment is `{given[name]}`, expected a whole number") from None
