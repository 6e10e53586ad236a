"""The package holds every room, and the public names exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import sculpt
import tomllib

ROOT = Path(__file__).parents[1]
OUTSIDE = {"tests", "benchmarks", "docs"}


def _packages() -> list[str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]


def test_the_package_list_names_every_folder() -> None:
    listed = set(_packages())
    folders = {file.parent.relative_to(ROOT).parts for file in ROOT.glob("**/*.py")}
    inside = {
        parts for parts in folders if not parts or (parts[0] not in OUTSIDE and not parts[0].startswith((".", "build")))
    }
    assert listed == {".".join(("sculpt", *parts)) for parts in inside}
    assert all((ROOT.joinpath(*parts) / "__init__.py").exists() for parts in inside)


def test_the_map_of_the_house_names_every_room() -> None:
    rooms = {package.split(".", 1)[1].replace(".", "/") for package in _packages() if package != "sculpt"}
    own = {room for room in rooms if room.count("/") == room.startswith("fusion/") and room != "fusion"}
    named = set(re.findall(r"^\| `([\w/]+)/` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    assert named == own | OUTSIDE


def test_no_room_can_be_imported_from_the_repository_root() -> None:
    banned = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]["flake8-tidy-imports"]
    assert set(banned["banned-api"]) == {package.split(".")[1] for package in _packages() if package != "sculpt"}


def test_a_class_name_stands_for_one_class() -> None:
    places = defaultdict(list)
    for package in _packages():
        for file in ROOT.joinpath(*package.split(".")[1:]).glob("*.py"):
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(file.relative_to(ROOT).as_posix())
    several = {name: files for name, files in places.items() if len(files) > 1}
    assert not several


def test_public_names_can_be_imported() -> None:
    for name in sculpt.__all__:
        assert getattr(sculpt, name) is not None


def test_no_room_takes_the_name_of_a_function() -> None:
    # An imported room becomes an attribute of `sculpt`; `evaluate` alone can be called.
    rooms = {package.split(".")[1] for package in _packages() if package != "sculpt"}
    assert rooms & set(sculpt.__all__) <= {"evaluate"}


def test_what_is_public_has_types_and_a_version() -> None:
    assert (ROOT / "py.typed").is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["package-data"]["sculpt"] == ["py.typed"]
    assert sculpt.__version__ == project["project"]["version"]


def test_every_method_is_a_public_name() -> None:
    from sculpt.fusion.methods import METHODS

    assert {method.__name__ for method in METHODS.values()} <= set(sculpt.__all__)
    assert all(getattr(sculpt, method.__name__) is method for method in METHODS.values())


def test_importing_sculpt_imports_nothing_heavy() -> None:
    code = "import sculpt, sys; assert not {'numpy', 'torch', 'typer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_extra_that_a_sentence_names_is_there_and_the_readme_has_all() -> None:
    from sculpt.fusion.errors import EXTRAS

    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    files = (file for package in _packages() for file in ROOT.joinpath(*package.split(".")[1:]).glob("*.py"))
    named = {extra for file in files for extra in re.findall(r"""installs\(["']([\w-]+)""", file.read_text())}
    assert named
    assert named | {*EXTRAS.values()} <= extras
    listed = (ROOT / "README.md").read_text().partition("More extras:")[2].partition("\n\n")[0]
    assert {*re.findall(r"`([\w-]+)`", listed), "calibrate", "dev"} == extras


def test_what_is_installed_from_hashes_needs_nothing_else() -> None:
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line for file in ROOT.glob("constraints*.txt") for line in file.read_text().splitlines()]
    pins = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line and not line.startswith("#")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    unpinned = ("captions", "lm-eval", "gs", "az")
    extras = [found for name, found in project["optional-dependencies"].items() if name not in unpinned]
    wanted = [Requirement(text) for found in (project["dependencies"], *extras) for text in found]
    for name in sorted(pins - {"torch"}):  # which pip resolves by itself, in the build that suits the machine
        try:
            needed = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        wanted += [found for found in needed if found.marker is None or found.marker.evaluate({"extra": ""})]
    own = canonicalize_name(project["name"])  # an extra may take in another one
    assert not {canonicalize_name(found.name) for found in wanted} - pins - {own}
