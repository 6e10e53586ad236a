"""The package holds every room, and the public names exist."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import sculpt
import tomllib

ROOT = Path(__file__).parents[1]
OUTSIDE = {"tests", "benchmarks", "docs"}


def test_the_package_list_names_every_folder() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {file.parent.relative_to(ROOT).parts for file in ROOT.glob("**/*.py")}
    inside = {
        parts for parts in folders if not parts or (parts[0] not in OUTSIDE and not parts[0].startswith((".", "build")))
    }
    assert listed == {".".join(("sculpt", *parts)) for parts in inside}
    assert all((ROOT.joinpath(*parts) / "__init__.py").exists() for parts in inside)


def test_public_names_can_be_imported() -> None:
    for name in sculpt.__all__:
        assert getattr(sculpt, name) is not None


def test_every_method_is_a_public_name() -> None:
    from sculpt.fusion.methods import METHODS

    assert {method.__name__ for method in METHODS.values()} <= set(sculpt.__all__)
    assert all(getattr(sculpt, method.__name__) is method for method in METHODS.values())


def test_importing_sculpt_imports_nothing_heavy() -> None:
    code = "import sculpt, sys; assert not {'numpy', 'torch', 'typer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
