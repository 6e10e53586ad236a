"""Run an arm's command, after making the files that it names."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from arms import Arm
from corpora import write_samples
from score import score
from sculpt.benchmarks.forgetting.rivals import RIVALS as RIVAL_METHODS
from tasks import TASKS
from train import tuned_folder

SCRIPTS = {"sequential": Path(__file__).with_name("sequential.py")}
RIVALS = "sculpt.benchmarks.forgetting.rivals"
OF_TUNED = ("target", "asked")  # sides that the fine-tune is measured on


class ArmError(Exception):
    """A command of sculpt failed; what it said."""


class Files(dict[str, str]):
    """The files that commands name in braces, for the fine-tune of a task, or of several tasks that are merged.

    `{side-count}` are samples, `{kind-side-count}` statistics, `{--flag kind-side-count}` the flag with that of each.
    """

    def __init__(self, work: Path, task: str, kind: str, seed: int, **known: str) -> None:
        super().__init__(known)
        self.work, self.task, self.goal = work, task, TASKS[task]
        self.base = self.goal.model.base(work)
        self.parts = [Files(work, part, kind, seed) for part in self.goal.parts]
        self.tuned = [tuned_folder(work, part, kind, seed) for part in self.goal.parts or (task,)]

    def __missing__(self, key: str) -> str:
        flag, _, wanted = key.rpartition(" ")
        if flag:
            words = [] if flag.startswith("--each") else [flag]
            return " ".join(word for part in self.parts or [self] for word in (*words, part[wanted]))
        *statistics, side, count = key.split("-")
        found = self.statistics(statistics[0], side, count) if statistics else self.samples(side, int(count))
        return str(found)

    def samples(self, side: str, count: int) -> Path:
        file = self.work / "samples" / f"{self.task if side in OF_TUNED else 'general'}-{side}-{count}.jsonl"
        if not file.exists():
            write_samples(self.goal.samples(side)[:count], file)
        return file

    def statistics(self, kind: str, side: str, count: str) -> Path:
        """Measure the fine-tune on target examples, or the base on general samples."""
        model = self.tuned[0] if (side in OF_TUNED) == (kind != "crossed") else self.base
        file = self.work / "statistics" / f"{model.name}-{kind}-{side}-{count}.safetensors"
        if file.exists():
            return file
        file.parent.mkdir(parents=True, exist_ok=True)
        given: list[object] = [model, "--data", self[f"{side}-{count}"], "--samples", count]
        is_adapter = (model / "adapter_config.json").exists()
        if kind in ("fisher", "magnitudes", "gradients"):
            like = ["--like", self[f"full-target-{count}"]] if kind == "gradients" else []
            run("measure", kind, *given, *(["--base", self.base] if is_adapter else []), *like, "-o", file)
            return file
        given += [] if kind == "hessian" else ["--full", "*"]
        given += ["--count", "completion"] if kind == "answers" else []
        run("calibrate", *given, *(["--only-changed", self.base] if is_adapter else []), "-o", file)
        return file

    def remove_full(self) -> None:
        """Remove the fine-tune's full statistics, which take 0.4 GB a file."""
        for folder, kind in product(self.tuned, ("full", "answers", "gradients")):
            for file in (self.work / "statistics").glob(f"{folder.name}-{kind}-*.safetensors"):
                file.unlink()


def run(name: str, *arguments: object) -> None:
    """Run a command of sculpt, the script beside this file that has its name, or a rival.

    Raises:
        ArmError: It failed.
    """
    if name in SCRIPTS:
        program = [str(SCRIPTS[name])]
    elif name in (*RIVAL_METHODS, "measure"):
        program = ["-m", f"{RIVALS}.measure"] if name == "measure" else ["-m", RIVALS, name]
    else:
        program = ["-m", "sculpt", name]
    command = [sys.executable, *program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ArmError(f"`{shlex.join(command[1:])}`: {done.stderr.strip()[-1000:]}")


@contextmanager
def fused(work: Path, arm: Arm, task: str, kind: str, seed: int, strength: float | None) -> Iterator[Path]:
    """Yield the folder of an arm's model; it is removed after use."""
    rest = {} if strength is None else {"rest": f"{1 - strength:g}"}
    files = Files(work, task, kind, seed, s=f"{strength}", **rest)
    with TemporaryDirectory(dir=work) as folder:
        models, more = files.tuned, ["--seed", seed]
        for k, step in enumerate(arm.command.split(";")):
            command, *options = shlex.split(step.format_map(files))
            output = Path(folder) / f"{k}"
            run(command, files.base, *models, *options, *more, "-o", output)
            models, more = [output], []
        yield models[0]


def fuse_and_score(
    work: Path, arm: Arm, task: str, kind: str, seed: int, strength: float | None, split: str
) -> dict[str, float]:
    start = monotonic()
    with fused(work, arm, task, kind, seed, strength) as folder:
        fuse_seconds = monotonic() - start
        return {**score(work, folder, task, split), "fuse seconds": fuse_seconds}
