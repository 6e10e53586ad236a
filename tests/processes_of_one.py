"""Real processes of one command, cheap to start: each forks from one that has imported what takes long.

Reads a line of JSON each: what the processes run, where, and how many they are; answers with their exit codes and what
they said. Of each process the first line is the world size that it was told.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from typing import Any

import torch
import transformers.models.llama.modeling_llama
import transformers.models.mixtral.modeling_mixtral  # noqa: F401
from sculpt.cli import app, start, sweep  # noqa: F401
from sculpt.evaluate import resume
from sculpt.evaluate.sweep import run_sweep  # noqa: F401
from sculpt.fusion.launch import launched
from sculpt.hessian import session  # noqa: F401


def dies_after_a_point(rank: int) -> None:
    add = resume.KnownPoints.add

    def add_and_die(known: Any, point: Any) -> None:
        add(known, point)
        if launched().rank == rank and len(known._new) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    resume.KnownPoints.add = add_and_die  # pyright: ignore[reportAttributeAccessIssue]


def run(job: dict[str, Any], rank: int, said: int) -> int:
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(job["folder"])
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(job["count"]), **job["environment"][rank]}
    print(launched().count, flush=True)
    if job["dies"] is not None:
        dies_after_a_point(job["dies"])
    for words in job["commands"]:
        sys.argv = ["sculpt", *words]
        try:
            start.main()
        except SystemExit as end:
            if end.code:
                return int(end.code)
        sys.stdout.flush()
    return 0


def answer(job: dict[str, Any]) -> list[tuple[int, str]]:
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(job["count"])]
        started = []
        for rank, file in enumerate(files):
            child = os.fork()
            if not child:
                os._exit(run(job, rank, file.fileno()))
            started.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in started]
        for file in files:
            file.seek(0)
        return [(code, file.read().decode()) for code, file in zip(codes, files, strict=True)]


torch.set_num_threads(1)
for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
