"""Several processes that make one output against one process: to the same bytes, killed and gone on with too."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sculpt
from safetensors.numpy import save_file
from sculpt.fusion.checkpoint.output import processes
from sculpt.fusion.checkpoint.output.folder_sink import FolderSink
from sculpt.fusion.checkpoint.output.processes import Processes
from sculpt.fusion.errors import LostProcessError, NonFiniteError, OutputError
from sculpt.fusion.launch import Launch, launched
from sculpt.fusion.methods import METHODS
from sculpt.fusion.record.manifest import Manifest
from sculpt.fusion.run.fuse import execute
from sculpt.fusion.run.prepared import prepare

METHOD = sculpt.AdaDare(allocation="exact", scope="block")
SETTINGS = sculpt.Settings(threads=2, max_shard_bytes=3_000_000)
SCRIPT = """
import os, signal, sys
import sculpt
from sculpt.fusion.checkpoint.output.folder_sink import FolderSink
base, tuned, output, dies = sys.argv[1:]
finish = FolderSink.finish
def finish_and_die(self, name, entry):
    finish(self, name, entry)
    if dies == os.environ["RANK"]:
        os.kill(os.getpid(), signal.SIGKILL)
FolderSink.finish = finish_and_die
method = sculpt.AdaDare(allocation="exact", scope="block")
settings = sculpt.Settings(threads=2, max_shard_bytes=3_000_000)
try:
    made = sculpt.fuse(base, tuned, output=output, method=method, settings=settings, calibration=False)
except sculpt.SculptError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(len(made.tensors))
"""


@pytest.fixture(scope="module", name="pair")
def _pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two checkpoints of blocks with tensors of many sizes, so that most pages hold several."""
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(0)
    own = {"a": (431, 700), "b": (97,), "c": (300, 911)}
    shapes = {f"layers.{k}.{name}": shape for k in range(4) for name, shape in own.items()}
    base = {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    tuned = {name: a + rng.standard_normal(a.shape).astype("f4") / 50 for name, a in base.items()}
    save_file(base, folder / "base.safetensors")
    save_file(tuned, folder / "tuned.safetensors")
    return folder / "base.safetensors", folder / "tuned.safetensors"


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def fuse(
    pair: tuple[Path, Path], output: Path, launch: Launch | None = None, method: sculpt.Method = METHOD
) -> Manifest:
    prepared = prepare(pair[0], [pair[1]], output=output, method=method, settings=SETTINGS)
    return execute(replace(prepared, processes=Processes(launch or Launch())))


def fuse_by(count: int, pair: tuple[Path, Path], output: Path, method: sculpt.Method = METHOD) -> list[Manifest]:
    """Return what each of several processes returns, here each a thread: they share nothing but the folder."""
    with ThreadPoolExecutor(count) as pool:
        started = [pool.submit(fuse, pair, output, Launch(rank=k, count=count), method) for k in range(count)]
        return [one.result() for one in started]


def start(count: int, *arguments: object) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *map(str, arguments)],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def ended(started: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    told = [process.communicate(timeout=120) for process in started]
    return [(process.returncode, out + err) for process, (out, err) in zip(started, told, strict=True)]


def test_two_processes_write_the_bytes_of_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    alone, both = tmp_path / "1" / "out", tmp_path / "2" / "out"
    found = ended(start(2, *pair, both, "none"))
    assert found == [(0, "12\n"), (0, "12\n")]
    fuse(pair, alone)
    assert content(both) == content(alone)
    assert [path.name for path in both.parent.iterdir()] == ["out"]


def test_a_killed_process_ends_the_run_and_another_number_goes_on(pair: tuple[Path, Path], tmp_path: Path) -> None:
    alone, several = tmp_path / "1" / "out", tmp_path / "2" / "out"
    (first, told), (second, _) = ended(start(2, *pair, several, "1"))
    assert first == 1
    assert "LostProcessError: process 1 of 2 ended" in told
    assert second == -9
    assert not several.exists()
    journals = list(several.parent.glob("out.partial/journal*.jsonl"))
    assert sum(len(journal.read_text().splitlines()) for journal in journals) >= 3  # two first lines, and a tensor
    assert len(fuse_by(3, pair, several)) == 3
    fuse(pair, alone)
    assert content(several) == content(alone)
    assert [path.name for path in several.parent.iterdir()] == ["out"]


def test_tensors_that_share_a_reduction_are_resumed_together(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, calls = FolderSink.finish, []

    def interrupted(sink: FolderSink, name: str, entry: dict[str, object]) -> None:
        finish(sink, name, entry)
        calls.append(name)
        if len(calls) == 2:  # of a block's three
            raise KeyboardInterrupt

    monkeypatch.setattr(FolderSink, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fuse(pair, tmp_path / "2" / "out")
    fuse(pair, tmp_path / "2" / "out")
    fuse(pair, tmp_path / "1" / "out")
    assert content(tmp_path / "2" / "out") == content(tmp_path / "1" / "out")


@pytest.mark.parametrize("name", ["dare", "ties", "linear", "slerp", "karcher"])
def test_any_number_of_processes_gives_the_same_bytes(name: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    method = METHODS[name]()
    fuse(pair, tmp_path / "1" / "out", method=method)
    _, *others = fuse_by(4, pair, tmp_path / "4" / "out", method)
    assert content(tmp_path / "4" / "out") == content(tmp_path / "1" / "out")
    assert others == [Manifest.read(tmp_path / "4" / "out")] * 3


def test_what_one_process_refuses_ends_all_and_leaves_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    bad = load_file(pair[1])
    bad["layers.3.c"][5, 5] = np.nan
    save_file(bad, tmp_path / "bad.safetensors")
    with ThreadPoolExecutor(2) as pool:
        started = [
            pool.submit(fuse, (pair[0], tmp_path / "bad.safetensors"), tmp_path / "out", Launch(rank=k, count=2))
            for k in range(2)
        ]
        errors = [one.exception() for one in started]
    assert any(isinstance(error, NonFiniteError) for error in errors)
    assert any(isinstance(error, OutputError) and "layers.3.c" in str(error) for error in errors)
    assert not list(tmp_path.glob("out*"))


def test_a_process_that_others_wait_for_in_vain_is_named(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(processes, "JOIN_SECONDS", 0.1)
    monkeypatch.setattr(processes, "TOLD_SECONDS", 0.05)
    caplog.set_level(logging.INFO)
    with pytest.raises(OutputError, match=r"of 2 processes these did not join .*: 1"):
        fuse(pair, tmp_path / "out", Launch(rank=0, count=2))
    with pytest.raises(OutputError, match="the first of 2 processes did not join"):
        fuse(pair, tmp_path / "out", Launch(rank=1, count=2))
    assert not list(tmp_path.glob("out*"))
    told = [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]
    assert [text.partition(", to")[0] for text in told] == [
        "waiting for processes 1",
        "waiting for the first of 2 processes",
    ]


def test_a_process_that_cannot_write_there_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # whoever runs this may write everywhere
    with pytest.raises(OutputError, match=r"process 1 may not write into its folder"):
        Processes(Launch(rank=1, count=2)).follow(tmp_path / "out.partial")


def test_a_process_elsewhere_that_falls_silent_is_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(processes, "CHECK_SECONDS", 0)
    monkeypatch.setattr(processes, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(processes, "this_process", lambda: {"host": "another", "pid": 1})
    (tmp_path / "sculpt-unfinished.json").write_text("{}")
    first, second = (Processes(Launch(rank=k, count=2)) for k in range(2))
    with ThreadPoolExecutor(1) as pool:
        came = pool.submit(second.follow, tmp_path)
        first.lead(tmp_path)
        assert came.result() == tmp_path
    second._over.set()
    with pytest.raises(LostProcessError, match="process 1 of 2"):
        first.gather("anything")
    first.leave(None, kept=True)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 4)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, (1, 2)),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8"}, (5, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),  # a batch script, which is not started by srun
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (0, 2)),
    ],
)
def test_a_process_knows_its_place_from_its_launcher(environment: dict[str, str], expected: tuple[int, int]) -> None:
    found = launched(environment)
    assert (found.rank, found.count) == expected


def test_a_place_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(OutputError, match="`RANK` is 2 and `WORLD_SIZE` 2"):
        launched({"RANK": "2", "WORLD_SIZE": "2"})
    with pytest.raises(OutputError, match="expected a whole number"):
        launched({"RANK": "first", "WORLD_SIZE": "2"})
    with pytest.raises(OutputError, match="`WORLD_SIZE` is 2 in the environment, and `RANK` is not set"):
        launched({"RANK": "", "WORLD_SIZE": "2"})
