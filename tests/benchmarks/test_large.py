"""The comparison for large models, run on a tiny one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sculpt.benchmarks.large import __main__ as large
from sculpt.benchmarks.large.arms import ARMS
from sculpt.demo.tiny import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

SUITE = """
pretrained:
  prose: {scorer: perplexity, score: probability, file: prose.jsonl, limit: 2}
target:
  answers: {scorer: perplexity, score: probability, file: answers.jsonl, limit: 2}
"""
ALL_OF_A_KIND = ("interpolation", "aim", "cgm soft", "two-sided*")


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """Return a folder of a base, a fine-tune, and texts."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            initializer_range=0.4,
        )
    )
    for name in ("base", "tuned"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    for name, rows in (
        ("prose", [{"text": f"the river was {word} in the morning"} for word in ("high", "low", "grey", "still")]),
        ("answers", [{"prompt": f"{k} and {k} is ", "completion": str(2 * k)} for k in range(3, 8)]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "suite.yaml").write_text(SUITE, encoding="utf-8")
    return tmp_path


def test_every_kind_of_arm_is_chosen_and_scored_and_a_second_run_scores_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"--base": "base", "--tuned": "tuned", "--data": "answers.jsonl", "--general": "prose.jsonl"}
    files = options | {"--suite": "suite.yaml", "--choose-on": "suite.yaml", "--work": "work", "-o": "table.md"}
    given = [word for flag, name in files.items() for word in (flag, str(folder / name))]
    given += ["--device", "cpu", "--samples", "3", "--backward-samples", "2", "--arm", *ALL_OF_A_KIND]
    large.main(given)
    table = (folder / "table.md").read_text(encoding="utf-8")
    lines = [line.split(" | ") for line in table.splitlines()]
    assert [line[0].removeprefix("| ") for line in lines[2:]] == [
        "base",
        "fine-tune",
        "interpolation",
        "aim",
        "cgm soft",
        "two-sided",
        "two-sided, no samples",
        "two-sided by answers",
        "two-sided by gradients",
    ]
    assert lines[0][1:5] == ["strength", "target", "gain kept %", "prose"]
    assert (lines[2][3], lines[3][3], lines[2][5]) == ("0.0", "100.0", "100.0")
    scores = (folder / "work" / "scores.jsonl").read_bytes()
    capsys.readouterr()
    large.main(given)
    assert (folder / "work" / "scores.jsonl").read_bytes() == scores
    assert capsys.readouterr().out.strip() == table.strip()


def test_every_grid_holds_where_it_starts() -> None:
    for arm in ARMS:
        assert arm.start in arm.grid
        for strength in arm.grid:
            arm.method(strength).for_models(1)
