"""`docs/adding-a-method.md` is true: its file and its line make a method of a copy of sculpt."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def sculpt(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return a runner of Python in which `sculpt` is a copy that has the method of the page."""
    parent = tmp_path_factory.mktemp("copy")
    outside = shutil.ignore_patterns(".*", "tests", "benchmarks", "__pycache__", "*.png", "build", "*.egg-info")
    shutil.copytree(ROOT, parent / "sculpt", ignore=outside)
    shutil.copytree(ROOT / "tests/fusion/methods", parent / "contract")
    for shared in ("conftest.py", "without_float64.py"):
        shutil.copy(ROOT / "tests" / shared, parent)
    file, line = re.findall(r"```python\n(.*?)```", (ROOT / "docs/adding-a-method.md").read_text(), re.DOTALL)
    methods = parent / "sculpt/fusion/methods"
    (methods / "consensus.py").write_text(file)
    known = (methods / "__init__.py").read_text()
    (methods / "__init__.py").write_text(known.replace("from .dare import", f"{line}from .dare import"))

    def run(*arguments: object) -> str:
        environment = os.environ | {"PYTHONPATH": str(parent)}
        found = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=environment, cwd=parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout

    return run


def test_one_file_and_one_line_are_a_command_a_recipe_and_a_public_name(
    sculpt: Callable[..., str],
    tmp_path: Path,
    models: Callable[..., list[np.ndarray]],
    make_checkpoint: Callable[..., Path],
    tensors_of: Callable[[Path], dict[str, np.ndarray]],
) -> None:
    base, *tuned = models(1, (24, 96), 3)
    folders = [make_checkpoint(f"model{k}", {"w": model}) for k, model in enumerate((base, *tuned))]
    sculpt("-m", "sculpt", "consensus", *folders, "--scale", "0.5", "--agreeing", "3", "-o", tmp_path / "one")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"method: consensus\noptions: {{scale: 0.5, agreeing: 3}}\n"
        f"base: {folders[0]}\nmodels: [{', '.join(map(str, folders[1:]))}]\n"
    )
    sculpt("-m", "sculpt", "merge", recipe, "-o", tmp_path / "other")
    sculpt("-c", "import sculpt; assert 'Consensus' in sculpt.__all__; sculpt.Consensus(agreeing=2)")

    one, other = tensors_of(tmp_path / "one")["w"], tensors_of(tmp_path / "other")["w"]
    deltas = [model - base for model in tuned]
    together = np.sum(deltas, axis=0)
    count = sum(abs(delta) >= np.float32(0.4) * abs(together - delta) for delta in deltas)
    np.testing.assert_allclose(one, np.where(count >= 3, base + 0.5 * together, base), atol=1e-7)
    assert (one != base).any()
    assert one.tobytes() == other.tobytes()


def test_the_contract_test_takes_the_new_method(sculpt: Callable[..., str]) -> None:
    out = sculpt("-m", "pytest", "-q", "-p", "no:cacheprovider", "contract/test_contract.py", "-k", "consensus")
    assert " passed" in out
