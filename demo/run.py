"""The whole story: fine-tune until the model forgets, calibrate, fuse in several ways, score them all."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..fusion.errors import OutputError, Way
from .result import DemoResult, DemoRow
from .setup import Narrator, Setup, Silence, counter, make_setup

RESULT = "sculpt-demo.json"
SAMPLES = 128
STRENGTH, SPARSITY = 0.5, 0.9
GENERAL_SAMPLES, GENERAL_TOKENS = 32, 256  # of the general set that ships, to protect the base on


def run_demo(
    out: Path,
    cache: Path,
    *,
    tiny: bool = False,
    strength: float = STRENGTH,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int,
    device: str,
    narrator: Narrator | None = None,
) -> DemoResult:
    """Fine-tune a small real model, fuse it with its base in five ways, and return the scores of all.

    The checkpoints, the calibration data and statistics and the result are left in `out`.

    Args:
        out: A folder that is new, empty or of an earlier demo.
        cache: Where downloads and converted models are kept.
        tiny: Download nothing; train a tiny model on the text that ships.
        strength: γ of AdaDARE-γ, λ of DARE and of the interpolation.
        steps: Of fine-tuning; None for what suits the model.
        minutes: Limit of the fine-tuning's time; None for none.

    Raises:
        SculptError: One sentence about what went wrong.
    """
    narrator = narrator or Silence()
    _refuse_foreign(out)
    from ..live.devices import pick_device

    pick_device(device)  # refused before anything is fetched
    clock = _Clock()
    setup = make_setup(cache, tiny=tiny, steps=steps, minutes=minutes, seed=seed, device=device, narrator=narrator)
    clock.lap("set-up")
    story = _Story(setup, out, seed=seed, device=device, narrator=narrator, clock=clock)
    return story.tell(strength, SPARSITY)


class _Clock:
    """Seconds of each stage, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.monotonic()

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self._start, 1)
        self._start = now


class _Story:
    """One run: what its stages share."""

    def __init__(self, setup: Setup, out: Path, *, seed: int, device: str, narrator: Narrator, clock: _Clock) -> None:
        from transformers import AutoTokenizer

        from ..fusion.checkpoint.pretrained import load_pretrained
        from .task import encode_prose, encode_question

        self.setup, self.out, self.seed, self.device = setup, out, seed, device
        self.narrator, self.clock = narrator, clock
        self.rows: list[DemoRow] = []
        self.tokenizer = load_pretrained(AutoTokenizer, setup.base, "tokenizer")
        self.test = [encode_question(example, self.tokenizer) for example in setup.task.test]
        self.prose = [encode_prose(text, self.tokenizer, setup.prose_tokens) for text in setup.task.prose]

    def tell(self, strength: float, sparsity: float) -> DemoResult:
        from ..api import PROTECTED, fuse
        from ..fusion.arithmetic.two_sided import Protection
        from ..fusion.methods import AdaDare, Dare, TaskArithmetic
        from ..fusion.run.calibration import Calibration
        from ..fusion.run.settings import Settings
        from ..hessian import calibrate
        from .task import write_calibration

        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / RESULT).write_text("{}\n", encoding="utf-8")
        self.score("base", self.setup.base)
        tuned = self.out / "tuned"
        trained = self.fine_tune(tuned)
        self.score("fine-tuned", tuned)

        data = write_calibration(self.setup.task.train[:SAMPLES], self.out / "calibration.jsonl")
        hessian = self.out / "hessian.safetensors"
        with self.narrator.stage(f"calibrating on {SAMPLES} training examples") as progress:
            calibrate(
                tuned,
                data=data,
                output=hessian,
                samples=SAMPLES,
                batch_size=8,
                full=["*"],
                seed=self.seed,
                device=self.device,
                overwrite=True,
                progress=progress,
            )
        self.clock.lap("calibrate")
        calibration = Calibration(
            hessian=hessian,
            max_length=GENERAL_TOKENS,
            seed=self.seed,
            device=self.device,
            protect_samples=GENERAL_SAMPLES,
        )
        for name, folder, method, protection in (
            (f"interpolation {strength}", "interpolation", TaskArithmetic(scale=strength), None),
            ("DARE λ=1", "dare-1", Dare(sparsity=sparsity, scale=1.0), None),
            (f"DARE λ={strength}", "dare", Dare(sparsity=sparsity, scale=strength), None),
            (f"AdaDARE-γ γ={strength}", "adadare", AdaDare(gamma=strength, sparsity=sparsity), None),
            ("two-sided λ=1", "two-sided", PROTECTED, Protection()),
        ):
            unit = "bytes" if protection is None else "steps"  # models that are run on the way are told by their blocks
            with self.narrator.stage(f"fusing: {name}", unit=unit) as progress:
                fuse(
                    self.setup.base,
                    tuned,
                    output=self.out / folder,
                    method=method,
                    calibration=calibration if method.uses_curvature or protection else True,
                    settings=Settings(seed=self.seed, device=self.device, protection=protection),
                    overwrite=True,
                    progress=progress,
                )
            self.clock.lap("fuse")
            self.score(name, self.out / folder)
        result = DemoResult(
            model=self.setup.model,
            task=self.setup.task.name,
            tiny=self.setup.tiny,
            seed=self.seed,
            num_test_answers=sum(len(example.answers) for example in self.setup.task.test),
            num_prose_tokens=sum(example.num_predicted for example in self.prose),
            trained=asdict(trained),
            rows=tuple(self.rows),
            seconds=self.clock.seconds,
        )
        text = json.dumps(result.as_json(), indent=1, ensure_ascii=False)
        (self.out / RESULT).write_text(text + "\n", encoding="utf-8")
        return result

    def fine_tune(self, tuned: Path) -> Any:
        """Train the base on the target task and save it as `tuned`; return the training's report."""
        import shutil

        import torch

        from ..live.model import load_model
        from ..training.full import fine_tune
        from .models import new_folder, save_checkpoint
        from .task import encode_question

        training = self.setup.training
        rows = [encode_question(example, self.tokenizer) for example in self.setup.task.train]
        torch.manual_seed(self.seed)
        model = load_model(self.setup.base, dtype=torch.float32, device=self.device, may_stream=False).model
        with self.narrator.stage(f"fine-tuning on {self.setup.task.name}") as progress:
            report = fine_tune(
                model,
                rows,
                training,
                compute=self.setup.compute,
                advance=counter(progress, training.steps, "step"),
            )
        if report.steps < training.steps:
            self.narrator.note(
                f"the time was up after {report.steps} of {training.steps} steps; "
                "the scores depend on this machine's speed"
            )
        shutil.rmtree(tuned, ignore_errors=True)
        with new_folder(tuned) as building:
            save_checkpoint(model, self.tokenizer, building)
        self.clock.lap("fine-tune")
        return report

    def score(self, name: str, path: Path) -> None:
        """Load a checkpoint as any user would, score it, and keep the row."""
        from ..live.model import load_model
        from .score import score_model

        with self.narrator.stage(f"scoring: {name}") as progress:
            model = load_model(path, dtype=self.setup.compute, device=self.device).model
            total = len(self.test) + len(self.prose)
            score = score_model(model, self.test, self.prose, advance=counter(progress, total, "example"))
        self.rows.append(
            DemoRow(
                name=name,
                path=path,
                target=score.target,
                general=score.general,
                perplexity=score.perplexity,
                avg=score.avg,
                h_score=score.h_score,
            )
        )
        self.clock.lap("score")


def _refuse_foreign(out: Path) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / RESULT).is_file())):
        raise OutputError(
            f"`{out}` exists and is not of an earlier demo", ways=[Way(option="out", effect="names another folder")]
        )
