"""Every shell block of README and docs is typed in order, in an empty folder with the stand-ins that it names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomllib

from .blocks import Block, parsed, shell_blocks
from .stand_ins import furnish

ROOT = Path(__file__).parents[2]
PAGES = {
    page.relative_to(ROOT).as_posix(): shell_blocks(page)
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where stand-ins are made."""
    return tmp_path_factory.mktemp("stand-ins")


@pytest.fixture
def typed(sculpt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Return what runs a command line in this process; `> file` at its end is where stdout goes."""
    from sculpt.data import general
    from sculpt.evaluate import charts, training_sweep

    # A general set that takes no time, and no charts, which take seconds.
    monkeypatch.setattr(charts, "draw", lambda *_: None)
    monkeypatch.setattr(training_sweep, "draw", lambda *_: None)
    monkeypatch.setattr(general, "kinds", lambda: ("code-python", "novels", "tables"))
    monkeypatch.setattr(general, "texts", lambda kind: (f"A text of {kind}.",) * 2)

    def run(words: list[str]) -> None:
        words, to = (words[:-2], words[-1]) if words[-2] == ">" else (words, None)
        done = sculpt(*words[1:])
        assert not done.returncode, f"{' '.join(words)}\n{done.stderr}"
        if to is not None:
            Path(to).write_text(done.stdout)

    return run


def check(words: list[str]) -> None:
    """Refuse what cannot be right wherever it is typed: a flag, an extra or a target of make that there is not."""
    if words[0] == "sculpt":
        parsed(words)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), words
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"\[([\w,-]+)\]", " ".join(words)) if "install" in words else ():
        assert set(named.split(",")) <= extras.keys(), words


@pytest.mark.parametrize("page", [page for page, blocks in PAGES.items() if blocks])
def test_what_a_page_says_can_be_typed_in_order(
    page: str, typed: Callable[[list[str]], None], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[Block] = PAGES[page]
    commands = [words for block in blocks if block.why_not is None for words in block.commands]
    furnish(tmp_path, page, {word for words in commands for word in words[1:]}, store=store)
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        for words in block.commands:
            check(words)
            if block.why_not is None:
                assert words[0] == "sculpt", f"{page}:{block.line}: {words[0]} cannot be typed: say why above the block"
                typed(words)
