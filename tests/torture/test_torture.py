"""Kills, errors of the disk and power cuts at the file events of every command that writes.

After each, the same command is run again. Whatever happened, the output then has the bytes of an undisturbed run, an
earlier output was there until then, and nothing is left beside it. The short form takes a few events of each command;
`make torture` takes all of them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sculpt
from sculpt.fusion.errors import SculptError
from sculpt.hessian.forward import journal

from .cases import CASES, Case, told, two_models
from .faults import Mode, Outcome, files_in, run
from .power import Before, Loss, cut_power

ALL = bool(os.environ.get("SCULPT_TORTURE"))
FIRST = int(os.environ.get("SCULPT_TORTURE_FROM", "0"))  # the event at which a run that was stopped goes on
FEW = {False: 3, True: 1}  # events of a command in the short form, whether it is slow or not
ERRORS: tuple[Mode, ...] = ("EIO", "ENOSPC")
LOSSES: tuple[Loss, ...] = ("content", "names", "both")
COUNTS: Counter[str] = Counter()
BENCHES: dict[str, Bench] = {}


@pytest.fixture(scope="module", autouse=True)
def _counts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(journal, "EVERY_SECONDS", 0.0)  # else a calibration that takes no time keeps nothing
        yield
    BENCHES.clear()
    if ALL:
        print("\n" + json.dumps(dict(sorted(COUNTS.items())), indent=1))


class Bench:
    """A case with what it writes undisturbed."""

    def __init__(self, case: Case, place: Path) -> None:
        self.case, self.place = case, place
        self.work = place / "work"
        if case.slow:
            import peft
            import torch
            import transformers

            del peft, transformers
            torch.set_num_threads(1)
        self.reset()
        self.inputs = told(files_in(self.work))
        whole = self.run("count")
        assert whole.code == 0, whole.stderr
        self.num_events = whole.events
        self.after = told(files_in(self.work))
        assert self.left_in_tmp() == []

    def reset(self) -> None:
        """Begin anew, with an earlier output where one is to be replaced."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.rmtree(self.place / "tmp", ignore_errors=True)
        made = self.place / "made"
        if not made.exists():
            self.case.prepare(self.work)
            if self.case.replaces:
                older = run(self.work, [*self.case.argv, *self.case.older])
                assert older.code == 0, older.stderr
            self.work.rename(made)
        shutil.copytree(made, self.work)

    def run(self, mode: Mode, point: int = -1, store: Path | None = None) -> Outcome:
        """Run the command."""
        return run(self.work, self.case.command(), mode, point, store)

    def left_in_tmp(self) -> list[str]:
        """Return what temporary files there are."""
        found = (self.place / "tmp").iterdir()
        return [path.name for path in found if not path.is_dir() or any(path.iterdir())]  # empty ones go a minute later

    def output(self, tree: dict[str, object], which: str | None = None) -> dict[str, object]:
        """Return the part of a tree that is an output, the last one by default."""
        own = which or self.case.output
        found = {name: content for name, content in tree.items() if name == own or name.startswith(f"{own}/")}
        # What could not be removed is told, and is the next run's to remove, within a folder as beside it.
        return {name: content for name, content in found.items() if ".partial" not in name}

    def points(self, seed: int) -> list[int]:
        """Return the events at which something goes wrong."""
        if ALL:
            return list(range(FIRST, self.num_events))
        last = list(range(max(0, self.num_events - 12), self.num_events))  # where names change
        few = FEW[self.case.slow]
        return sorted(random.Random(seed).sample(last, min(few, len(last))))

    def check_whole_or_former(self, what: str) -> None:
        """Assert that the output's name has what it had, what it is to have, or nothing where there was nothing."""
        own = self.output(told(files_in(self.work)))
        assert own in (self.output(self.after), self.output(self.inputs)), what
        for other in self.case.others:
            found = self.output(told(files_in(self.work)), other)
            assert found in (self.output(self.after, other), self.output(self.inputs, other)), (what, other)

    def check_again(self, what: str) -> None:
        """Assert that the same command then ends as if nothing had happened."""
        again = self.run("count")
        now = told(files_in(self.work))
        finished = again.code == 1 and " exists\n" in again.stderr and not self.case.replaces
        assert again.code == 0 or finished, (what, again.stderr)
        assert now == self.after, (what, sorted(set(now) ^ set(self.after)))
        assert self.left_in_tmp() == [], what


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    case: Case = request.param
    if not ALL and (case.long or (case.slow and "kill" not in request.node.name)):
        pytest.skip("`make torture` runs it")
    if case.name not in BENCHES:
        BENCHES[case.name] = Bench(case, tmp_path_factory.mktemp("torture"))
    return BENCHES[case.name]


def test_a_kill_at_any_event_loses_nothing(bench: Bench) -> None:
    for point in bench.points(1):
        bench.reset()
        what = f"{bench.case.name}: killed at event {point} of {bench.num_events}"
        killed = bench.run("kill", point)
        COUNTS[f"{bench.case.name}: kills"] += killed.code < 0
        bench.check_whole_or_former(what)
        bench.check_again(what)


def test_an_error_at_any_event_is_a_sentence_and_leaves_nothing(bench: Bench) -> None:
    for place, point in enumerate(bench.points(2)):
        for error in ERRORS if ALL else [ERRORS[place % 2]]:
            check_error(bench, point, error)


def check_error(bench: Bench, point: int, error: Mode) -> None:
    """Have the system give an error at an event, and look at what is told and left."""
    bench.reset()
    what = f"{bench.case.name}: {error} at event {point} of {bench.num_events}"
    failed = bench.run(error, point)
    COUNTS[f"{bench.case.name}: errors"] += 1
    own = bench.output(told(files_in(bench.work)))
    if failed.code == 0:
        assert own == bench.output(bench.after), what
    else:
        assert failed.code == 1, (what, failed.stderr)
        assert "Traceback" not in failed.stderr, (what, failed.stderr)
        assert "error: " in failed.stderr, (what, failed.stderr)
        assert own == bench.output(bench.inputs), what
        bench.check_whole_or_former(what)
    bench.check_again(what)


def test_a_power_cut_at_any_event_loses_nothing(bench: Bench) -> None:
    for place, point in enumerate(bench.points(3)):
        for loss in LOSSES if ALL else [LOSSES[place % 3]]:
            check_power_cut(bench, point, loss)


def check_power_cut(bench: Bench, point: int, loss: Loss) -> None:
    """Leave of a run what a power cut at an event might have left, and look at what the next run makes of it."""
    bench.reset()
    what = f"{bench.case.name}: power cut at event {point} of {bench.num_events}, {loss} lost"
    store = bench.place / "store"
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    before = Before(bench.work, store)
    bench.run("record", point, store)
    COUNTS[f"{bench.case.name}: power cuts"] += 1
    shutil.rmtree(bench.place / "tmp", ignore_errors=True)
    cut_power(bench.work, before, loss)
    bench.check_whole_or_former(what)
    bench.check_again(what)


@pytest.mark.parametrize("locks", [True, False], ids=["with locks", "without locks"])
def test_of_runs_at_once_into_one_output_one_wins_and_its_weights_are_its_own(locks: bool, tmp_path: Path) -> None:
    two_models(tmp_path / "models")
    whole = {}
    for seed in (1, 2):
        sculpt.fuse(tmp_path / "models/base", tmp_path / "models/sft", **race(tmp_path / f"alone{seed}", seed))
        whole[seed] = weights(tmp_path / f"alone{seed}")
    for number in range(75 if ALL else 4):
        output = tmp_path / f"out{number}"
        children = [start_race(tmp_path, output, seed, locks=locks) for seed in (1, 2)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        COUNTS[f"races {'with' if locks else 'without'} locks"] += 1
        assert 0 in codes
        assert weights(output) in whole.values()
        sculpt.verify(output)
        assert codes != [0, 0]
        assert not list(tmp_path.glob(f"out{number}.partial*"))


def race(output: Path, seed: int) -> dict[str, Any]:
    """Return the options of a fuse whose bits depend on the seed."""
    settings = sculpt.Settings(seed=seed, threads=1)
    return {"output": output, "method": sculpt.Dare(), "calibration": False, "settings": settings}


def weights(folder: Path) -> dict[str, bytes]:
    """Return the content of the weight files."""
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def start_race(place: Path, output: Path, seed: int, *, locks: bool) -> int:
    """Return the process that fuses; it ends with 0, or with 1 where it was refused."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        if not locks:
            fcntl.flock = no_lock
        sculpt.fuse(place / "models/base", place / "models/sft", **race(output, seed))
        code = 0
    except SculptError:
        code = 1
    finally:
        os._exit(code)


def no_lock(*_: object) -> None:
    """Fail as a mount without locks does."""
    raise OSError(errno.ENOLCK, "No locks available")
