"""`sculpt bound`, and `sculpt fuse` with a budget, as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Pair = Callable[..., tuple[Path, Path]]
Sculpt = Callable[..., Any]


def test_the_bounds_of_blocks_and_tensors_agree(sculpt: Sculpt, make_pair: Pair) -> None:
    base, tuned = make_pair()
    found = json.loads(sculpt("bound", base, tuned, "--eta-relative", "0.05", "--json").stdout)
    assert [block["name"] for block in found["blocks"]] == [
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.1",
        "model.norm",
    ]
    for tensor in found["tensors"]:
        assert abs(tensor["largest_gamma"] - 0.05 * tensor["base_l1"] / tensor["delta_l1"]) < 1e-12
    assert found["largest_gamma"] == min(tensor["largest_gamma"] for tensor in found["tensors"])
    block = next(block for block in found["blocks"] if block["name"] == "model.layers.1")
    inside = [tensor for tensor in found["tensors"] if tensor["name"].startswith("model.layers.1.")]
    assert abs(block["delta_l1"] - sum(tensor["delta_l1"] for tensor in inside)) < 1e-9
    assert block["largest_gamma"] == min(tensor["largest_gamma"] for tensor in inside)


def test_people_see_a_table_and_a_sentence(sculpt: Sculpt, make_pair: Pair) -> None:
    base, tuned = make_pair()
    done = sculpt("bound", base, tuned)
    assert done.returncode == 0
    for part in ("model.layers.1", "Σ|δ|", "largest γ for η = 0.01·‖base‖₁"):
        assert part in done.stdout
    assert "no budget was given" in done.stderr


def test_a_fuse_says_where_the_budget_cut_gamma(sculpt: Sculpt, make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    done = sculpt(
        "fuse", base, tuned, "--no-calibration", "--eta-relative", "0.01", "-o", tmp_path / "out", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "The budget cut γ in 10 of 10 tensors" in done.stderr.replace("\n", " ")


def test_two_budgets_exclude_each_other(sculpt: Sculpt, make_pair: Pair) -> None:
    base, tuned = make_pair()
    done = sculpt("bound", base, tuned, "--eta", "1", "--eta-relative", "0.1")
    assert done.returncode == 1
    assert done.stderr == "error: `--eta` and `--eta-relative` exclude each other\n"
