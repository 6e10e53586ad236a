"""Several devices that one command names: a process for each, started here, this one the first."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from pathlib import Path

import typer


def own_device(names: str) -> str:
    """Return the device of this process among those that are named, such as `cuda:0,cuda:1`.

    Where no launcher has started others, they are started: the same command, a process for each device.
    """
    from ..fusion.launch import launched

    devices = [name.strip() for name in names.split(",")]
    if not all(devices):
        raise typer.BadParameter(f"`{names}` lacks the name of a device", param_hint="--devices")
    if len(devices) == 1:
        return names
    if launched().count == 1:
        _start(len(devices))
    launch = launched()
    place = launch.rank if launch.local_rank is None else launch.local_rank
    return devices[place % len(devices)]


def _start(count: int) -> None:
    from ..fusion.device import all_cores
    from ..fusion.launch import STARTED

    package, folder = __name__.partition(".")[0], Path(__file__).resolve().parents[2]
    threads = str(max(1, all_cores() // count))
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),  # torch in each would take all cores
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", package, *sys.argv[1:]],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
        )
        for rank in range(1, count)
    ]
    os.environ.update(shared, RANK="0", LOCAL_RANK="0")
    STARTED.set(tuple(started))
    for process in started:
        atexit.register(process.wait)
