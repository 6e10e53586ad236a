"""Settings of a training tried one at a time: what each adapter scores, the other settings being as they are.

Fig. 4 and Tab. I of LoRASculpt are such: ω, α, the densities and β, one varied beside the defaults of the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ..fusion.checkpoint import open_checkpoint
from ..fusion.errors import MethodError
from ..fusion.file_kinds import ADAPTER_RECORD
from ..fusion.picture import new_figure, write_picture
from ..fusion.progress import Progress, silent
from ..fusion.table import Table, with_deviation
from ..live.model import load_model
from ..training.settings import AdapterMethod, Schedule
from ..training.train import plan_of, recorded_plan, train_adapter
from .evaluate import SuiteScores, score_suite
from .strengths import parse_grid
from .suite import Suite

SIDES = {"pretrained": "Source", "target": "Target", "source-target-avg": "Avg"}
Settings = tuple[AdapterMethod, Schedule]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting at one value, over the seeds."""

    setting: str
    value: float
    scores: tuple[SuiteScores, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"setting": self.setting, "value": self.value, "seeds": [scores.as_json() for scores in self.scores]}

    def mean(self, measure: str) -> tuple[float, float]:
        """Return a measure's mean and deviation over the seeds."""
        values = [scores.measures[measure] for scores in self.scores]
        return fmean(values), stdev(values) if len(values) > 1 else 0.0


def parse_settings(texts: Sequence[str], settings: Settings) -> dict[str, tuple[float, ...]]:
    """Return the values of `alpha=1e-4,1e-3` and `density=0.05:0.2:0.05`, by the name of the setting.

    Raises:
        MethodError: There is no such setting that is a number.
    """
    known = {
        field.name
        for part in settings
        for field in fields(part)
        if any(kind in str(field.type) for kind in ("int", "float")) and field.name not in ("seed", "save_steps")
    }
    found = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known or not values:
            raise MethodError(f"`{text}` is not a setting with values", hint=f"settings are {', '.join(sorted(known))}")
        found[name] = parse_grid(values)
    return found


def with_setting(settings: Settings, name: str, value: float) -> Settings:
    """Return the settings with one changed."""
    method, schedule = settings
    part = method if hasattr(method, name) else schedule
    whole = next(field for field in fields(part) if field.name == name).type
    changed = replace(part, **{name: int(value) if str(whole).startswith("int") else value})
    return (changed, schedule) if part is method else (method, changed)  # pyright: ignore[reportReturnType]


def sweep_training(
    base: Path,
    *,
    data: Path,
    suite: Suite,
    settings: Settings,
    varied: Mapping[str, Sequence[float]],
    seeds: Sequence[int],
    output: Path,
    progress: Progress = silent,
) -> list[Trial]:
    """Return what each value of each setting scores; adapters stay in `output`, and are not trained again.

    Raises:
        SculptError: As training and scoring do.
    """
    known: dict[Settings, SuiteScores] = {}
    total, done = len(seeds) * sum(map(len, varied.values())), 0
    trials = []
    for name, values in varied.items():
        for value in values:
            scores = []
            for seed in seeds:
                method, schedule = with_setting(settings, name, value)
                wanted = method, replace(schedule, seed=seed)
                progress(done, total, f"{name} {value:g}")
                if wanted not in known:
                    folder = output / f"{name}-{value:g}-seed-{seed}"
                    known[wanted] = _score(base, _trained(base, data, folder, wanted), suite)
                scores.append(known[wanted])
                done += 1
            trials.append(Trial(setting=name, value=value, scores=tuple(scores)))
    progress(total, total, "")
    return trials


def _trained(base: Path, data: Path, folder: Path, wanted: Settings) -> Path:
    """Return the adapter of these settings: the one of an earlier sweep, or a new one."""
    record = folder / ADAPTER_RECORD
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8")).get("settings", {})
        opened = open_checkpoint(base)
        if before == json.loads(json.dumps(recorded_plan(plan_of(opened, data, *wanted), opened))):
            return folder
    train_adapter(base, data=data, output=folder, method=wanted[0], schedule=wanted[1], overwrite=record.is_file())
    return folder


def _score(base: Path, adapter: Path, suite: Suite) -> SuiteScores:
    with load_model(open_checkpoint(adapter, open_checkpoint(base))) as live:
        return score_suite(live, suite)


def table_of(trials: Sequence[Trial]) -> Table:
    """Return a row a value: each task, both sides, their mean."""
    first = trials[0].scores[0]
    tasks = [task.name for task in first.tasks]
    means = [name for name in SIDES if name in first.measures]
    rows = [
        [trial.setting, f"{trial.value:g}", *(with_deviation(*trial.mean(name)) for name in (*tasks, *means))]
        for trial in trials
    ]
    return Table(columns=["setting", "value", *tasks, *(SIDES[name] for name in means)], rows=rows)


def draw(trials: Sequence[Trial], files: Sequence[Path]) -> None:
    """Write a chart with a panel a setting: both sides and their mean against its values.

    Raises:
        ModelError: matplotlib is not installed.
    """
    settings = list(dict.fromkeys(trial.setting for trial in trials))
    figure = new_figure(4.2 * len(settings), 3.4)
    for place, name in enumerate(settings):
        axes = figure.add_subplot(1, len(settings), place + 1)
        own = sorted((trial for trial in trials if trial.setting == name), key=lambda trial: trial.value)
        values = [trial.value for trial in own]
        for mark, (measure, title) in zip("osD", SIDES.items(), strict=True):
            if measure in own[0].scores[0].measures:
                means, deviations = zip(*(trial.mean(measure) for trial in own), strict=True)
                axes.errorbar(values, means, yerr=deviations if any(deviations) else None, marker=mark, label=title)
        if min(values) > 0 and max(values) >= 10 * min(values):
            axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    for file in files:
        write_picture(figure, file, made_by="lora-sweep", overwrite=True)
