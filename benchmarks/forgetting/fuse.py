"""Run an arm's command, after making the files that it names."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from arms import Arm
from corpora import write_samples
from score import score
from tasks import TASKS
from train import tuned_folder

SCRIPTS = {"sequential": Path(__file__).with_name("sequential.py")}


class ArmError(Exception):
    """A command of sculpt failed; what it said."""


class Files(dict[str, str]):
    """The files that commands name in braces, by `{kind-side-count}`, for one fine-tune."""

    def __init__(self, work: Path, task: str, kind: str, seed: int, **known: str) -> None:
        super().__init__(known)
        self.work, self.task, self.goal = work, task, TASKS[task]
        self.base = self.goal.model.base(work)
        self.tuned = tuned_folder(work, task, kind, seed)

    def __missing__(self, key: str) -> str:
        *statistics, side, count = key.split("-")
        found = self.statistics(statistics[0], side, count) if statistics else self.samples(side, int(count))
        return str(found)

    def samples(self, side: str, count: int) -> Path:
        file = self.work / "samples" / f"{self.task if side == 'target' else 'general'}-{side}-{count}.jsonl"
        if not file.exists():
            write_samples(self.goal.samples(side)[:count], file)
        return file

    def statistics(self, kind: str, side: str, count: str) -> Path:
        """Measure the fine-tune on target examples, or the base on general samples."""
        model = self.tuned if (side == "target") == (kind != "crossed") else self.base
        file = self.work / "statistics" / f"{model.name}-{kind}-{side}-{count}.safetensors"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            options: list[str] = ["--full", "*"] if kind in ("full", "crossed") else []
            if (model / "adapter_config.json").exists():
                options += ["--only-changed", str(self.base)]
            data = self[f"{side}-{count}"]
            run("calibrate", model, "--data", data, "--samples", count, *options, "-o", file)
        return file

    def remove_full(self) -> None:
        """Remove the fine-tune's full statistics, which take 0.4 GB a file."""
        for file in (self.work / "statistics").glob(f"{self.tuned.name}-full-*.safetensors"):
            file.unlink()


def run(name: str, *arguments: object) -> None:
    """Run a command of sculpt, or the script beside this file that has its name.

    Raises:
        ArmError: It failed.
    """
    program = [str(SCRIPTS[name])] if name in SCRIPTS else ["-m", "sculpt", name]
    command = [sys.executable, *program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ArmError(f"`{shlex.join(command[1:])}`: {done.stderr.strip()[-1000:]}")


@contextmanager
def fused(work: Path, arm: Arm, task: str, kind: str, seed: int, strength: float | None) -> Iterator[Path]:
    """Yield the folder of an arm's model; it is removed after use."""
    files = Files(work, task, kind, seed, s=f"{strength}")
    with TemporaryDirectory(dir=work) as folder:
        model, more = files.tuned, ["--seed", seed]
        for k, step in enumerate(arm.command.split(";")):
            command, *options = shlex.split(step.format_map(files))
            output = Path(folder) / f"{k}"
            run(command, files.base, model, *options, *more, "-o", output)
            model, more = output, []
        yield model


def fuse_and_score(
    work: Path, arm: Arm, task: str, kind: str, seed: int, strength: float | None, split: str
) -> dict[str, float]:
    start = monotonic()
    with fused(work, arm, task, kind, seed, strength) as folder:
        fuse_seconds = monotonic() - start
        return {**score(work, folder, task, split), "fuse seconds": fuse_seconds}
