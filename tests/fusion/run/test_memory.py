"""What a run takes of memory against what its plan says: each method in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sculpt
from safetensors.numpy import save_file
from sculpt.fusion.errors import MemoryBudgetError
from sculpt.fusion.methods import METHODS, Method
from sculpt.fusion.run.prepared import prepare

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
SHAPE = (1500, 1500)
SQUARE = (1100, 1100)  # for what factorises matrices
SMALL = (60, 40)
TALL = (6000, 300)  # whose singular vectors are found quickly
BY_SINGULAR_VECTORS = ("tsv-m", "iso-c")
# Methods that look at more than a row at a time are here in the form that does; a protection stands before one.
CASES: dict[str, tuple[str, int, dict[str, object], dict[str, object] | None]] = {
    **{
        name: (name, max(1, found().model_range[0]), {}, None)
        for name, found in METHODS.items()
        if name != "passthrough" and not found.protects
    },
    "nuslerp of columns": ("nuslerp", 2, {"vectors": "columns"}, None),
    "model-stock of rows": ("model-stock", 2, {"filter_wise": True}, None),
    "ties of three": ("ties", 3, {}, None),
    "regmean of three": ("regmean", 3, {}, None),
    "protected": ("task-arithmetic", 1, {"scale": 1.0}, {"weight": 1.0}),
    "protected in blocks": ("task-arithmetic", 1, {"scale": 1.0}, {"curvature": "block:500"}),
    "protected from two": ("task-arithmetic", 2, {"scale": 1.0}, {"weight": 1.0}),
    "protected, then DARE": ("dare", 1, {}, {"weight": 1.0}),
    "protected by its delta": ("task-arithmetic", 1, {"scale": 1.0}, {"target": "delta"}),
    "three put together": ("adadare", 3, {"gamma": 1.0, "sparsity": 0.0}, {"weight": 1.0}),
}


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_in(tmp_path_factory.mktemp("memory"), SHAPE)


@pytest.fixture(scope="module", name="square")
def _square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_in(tmp_path_factory.mktemp("square"), SQUARE)


@pytest.fixture(scope="module", name="tall")
def _tall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_in(tmp_path_factory.mktemp("tall"), TALL)


def models_in(folder: Path, shape: tuple[int, int]) -> Path:
    """Return the folder, with a base and three fine-tunes, each with four matrices, and small ones in `small`."""
    if shape != SMALL:
        (folder / "small").mkdir()
        models_in(folder / "small", SMALL)
    base = {f"layers.{k}.weight": np.random.default_rng(k).standard_normal(shape).astype("f4") for k in range(4)}
    for model in range(4):
        rng = np.random.default_rng(100 + model)
        changed = {name: a + rng.standard_normal(shape).astype("f4") / 100 if model else a for name, a in base.items()}
        save_file(changed, folder / f"{model}.safetensors")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_run_takes_what_its_plan_says(case: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    method, num_tuned, options, protection = CASES[case]
    factorises = METHODS[method].loads_torch or protection is not None
    models = request.getfixturevalue("tall" if case in BY_SINGULAR_VECTORS else "square" if factorises else "folder")
    (tmp_path / "small").mkdir()
    for file in models.rglob("*.safetensors"):
        (tmp_path / file.relative_to(models)).symlink_to(file)
    arguments = [str(tmp_path), method, str(num_tuned), json.dumps(options), json.dumps(protection)]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("memory_of.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["added"] <= 1.2 * found["billed"], found


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("method", [sculpt.Tailor(), sculpt.NuSlerp(vectors="columns")], ids=["tailor", "nuslerp"])
def test_the_budget_that_a_refusal_names_is_enough(method: Method, threads: int, folder: Path, tmp_path: Path) -> None:
    tuned = [folder / "1.safetensors", folder / "2.safetensors"][: method.model_range[0]]

    def prepared(memory: int) -> None:
        settings = sculpt.Settings(memory=memory, threads=threads)
        prepare(folder / "0.safetensors", tuned, output=tmp_path / "out", method=method, settings=settings)

    with pytest.raises(MemoryBudgetError) as refused:
        prepared(20_000_000)
    prepared(int(re.findall(r"(\d+)MB", str(refused.value.hint))[0]) * 1_000_000)
