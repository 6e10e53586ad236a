"""`lora-sweep` as it is typed: one setting at a time, nothing trained twice."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from sculpt.evaluate.training_sweep import parse_settings, with_setting
from sculpt.fusion.errors import MethodError
from sculpt.training import AdapterMethod, Schedule

from ..commands import invoke
from . import tiny

SETTINGS = AdapterMethod(), Schedule()


def test_settings_are_named_as_their_flags_are():
    assert parse_settings(["alpha=1e-3,1", "warmup-steps=2,3"], SETTINGS) == {
        "alpha": (1e-3, 1.0),
        "warmup_steps": (2, 3),
    }
    method, schedule = with_setting(SETTINGS, "rank", 8.0)
    assert (method.rank, type(method.rank), schedule) == (8, int, SETTINGS[1])
    assert with_setting(SETTINGS, "learning_rate", 1e-5)[1].learning_rate == 1e-5
    for text in ("alpha", "colour=1", "method=1", "seed=1,2"):
        with pytest.raises(MethodError, match="is not a setting with values"):
            parse_settings([text], SETTINGS)


def test_each_value_is_trained_and_scored_once(tmp_path: Path) -> None:
    base = tiny.llama_folder(tmp_path / "base")
    data = tiny.sentences(tmp_path / "d.jsonl")
    rows = [{"prompt": "a b", "completion": " c"}, {"prompt": "b", "completion": " a"}]
    tiny.write_rows(tmp_path / "t.jsonl", *rows)
    task = "{scorer: perplexity, file: t.jsonl, score: probability}"
    (tmp_path / "s.yaml").write_text(f"pretrained: {{before: {task}}}\ntarget: {{learned: {task}}}\n")
    out = tmp_path / "sweep"
    arguments = [
        "lora-sweep", base, "--data", data, "--suite", tmp_path / "s.yaml", "-o", out, "--rank", "4",
        "--warmup-steps", "2", "--max-steps", "3", "--batch-size", "4", "--learning-rate", "0.01", "--device", "cpu",
        "--vary", "alpha=0.001,1", "--vary", "density=0.1,0.5",
    ]  # fmt: skip
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert [(row["setting"], row["value"]) for row in rows] == [
        *(("alpha", 0.001), ("alpha", 1.0), ("density", 0.1), ("density", 0.5))
    ]
    # The defaults are one adapter, whatever setting they are a value of.
    assert rows[0]["seeds"] == rows[2]["seeds"] != rows[1]["seeds"]
    adapters = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert adapters == ["alpha-0.001-seed-0", "alpha-1-seed-0", "density-0.5-seed-0"]
    table = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert list(table[0]) == ["setting", "value", "before", "learned", "Source", "Target", "Avg"]
    times = [(out / name / "adapter_model.safetensors").stat().st_mtime_ns for name in adapters]
    again = invoke(*arguments)
    assert again.exit_code == 0, again.output
    assert [(out / name / "adapter_model.safetensors").stat().st_mtime_ns for name in adapters] == times
    assert (out / "sweep.png").exists()
