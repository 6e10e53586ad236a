"""The notebook in docs/ runs, and what it shows is what its cells gave when they were run in order."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from .stand_ins import furnish

ROOT = Path(__file__).parents[2]
SUITE = """batch_size: 2
max_length: 64
pretrained:
  prose: {scorer: perplexity, file: general.jsonl, limit: 2}
target:
  tagging: {scorer: perplexity, file: train.jsonl, limit: 2}
"""


def executor() -> Any:
    spec = importlib.util.spec_from_file_location("execute", ROOT / "docs/notebook/execute.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_notebook_runs_on_tiny_models(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sculpt.data import general
    from sculpt.evaluate import charts, sweeping

    monkeypatch.setattr(general, "kinds", lambda: ("code-python", "novels"))
    monkeypatch.setattr(general, "texts", lambda kind: (f"A text of {kind}.",) * 2)
    monkeypatch.setattr(charts, "draw", lambda *_: None)  # which takes seconds
    monkeypatch.setattr(sweeping, "draw", lambda *_: None)
    furnish(tmp_path, "docs/notebook", {"base", "sft"}, store=tmp_path_factory.mktemp("stand-ins"))
    (tmp_path / "suite.yaml").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    found = executor()
    cells = json.loads(found.NOTEBOOK.read_text())["cells"]
    shown = list(found.run_cells(cells))
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell, outputs in zip(code, shown, strict=True):
        kept, now = (
            [{one["output_type"], *one.get("data", ())} for one in some] for some in (cell["outputs"], outputs)
        )
        assert kept == now, "".join(cell["source"])
    assert (tmp_path / "report.html").is_file()
