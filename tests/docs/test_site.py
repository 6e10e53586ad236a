"""The site: a page for each command and method, and no link that leads nowhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import sculpt
from sculpt.cli.app import app_of
from sculpt.fusion.methods import METHODS
from typer.main import get_command

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"^ +- (?:\w+: )?([\w-]+\.md)$", re.MULTILINE)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """Every page by its name, as Markdown."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/site/generate.py")
    assert spec is not None
    assert spec.loader is not None
    found: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return {**found.pages(), "first-look.md": found.notebook(ROOT / "docs/notebook/first-look.ipynb")}


def test_every_page_can_be_found(pages: dict[str, str]) -> None:
    named = NAMED.findall((ROOT / "docs/site/mkdocs.yml").read_text())
    assert sorted(named) == sorted(name for name in pages if not name.startswith("command-"))


def test_links_lead_to_pages_of_the_site(pages: dict[str, str]) -> None:
    pictures = {file.name for file in (ROOT / "docs").iterdir()}
    for name, text in pages.items():
        prose = re.sub(r"`[^`]*`|^    .*$|^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^)#]+)", prose):
            assert "://" in link or link in pages or link in pictures, f"{name}: {link}"


def test_commands_methods_and_public_names_are_all_there(pages: dict[str, str]) -> None:
    commands: Any = get_command(app_of())
    assert {name for name in pages if name.startswith("command-")} == {f"command-{n}.md" for n in commands.commands}
    for name in commands.commands:
        assert f"(command-{name}.md)" in pages["commands.md"]
    assert all(f"{{#{name}}}" in pages["methods.md"] for name in METHODS)
    methods = {method.__name__ for method in METHODS.values()}
    assert all(f'"sculpt.{name}"' in pages["api.md"] for name in set(sculpt.__all__) - methods)
    assert "--pick" in pages["command-sweep.md"]


def test_words_of_the_glossary_are_in_order() -> None:
    words = re.findall(r"^\| ([^|]+) \| ", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)[1:]
    spelled = [word.translate(str.maketrans({"γ": "gamma", "λ": "lambda"})).lower() for word in words]
    assert spelled == sorted(spelled)
