"""Several outputs of one run: what was made is not made again, and what others made is not taken for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sculpt.fusion.checkpoint.output.guard import file_kind
from sculpt.fusion.checkpoint.output.status import unfinished
from sculpt.fusion.checkpoint.output.steps import Steps
from sculpt.fusion.errors import OutputError

NOTE = file_kind("note", b"note")


class Killed(BaseException):
    """As a signal raises it."""


def make(folder: Path, facts: str, *, overwrite: bool = False, stop: int = 2) -> list[bool]:
    """Make two notes unless they are made, and be killed before one of them; return which were made before."""
    found = []
    with Steps(folder / "b", made_by="test") as steps:
        for number, name in enumerate("ab"):
            found.append(steps.is_made(folder / name, {"of": facts}, NOTE, overwrite=overwrite))
            if number == stop:
                raise Killed
            if not found[-1]:
                (folder / f"{name}.new").write_text(f"note {facts}")
                (folder / f"{name}.new").replace(folder / name)
    return found


def test_a_killed_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        make(tmp_path, "x", stop=1)
    assert [(one.made_by, one.done) for one in unfinished(tmp_path / "b")] == [("test", "1 outputs")]
    assert make(tmp_path, "x") == [True, False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(OutputError, match="exists"):
        make(tmp_path, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_what_a_run_of_other_facts_made_is_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        make(tmp_path, "x", stop=1)
    with pytest.raises(OutputError, match="exists"):
        make(tmp_path, "y")
    assert make(tmp_path, "x") == [True, False]  # the refused run took nothing of it away


def test_what_was_there_before_is_not_taken_for_what_was_made(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("note of old")
    with pytest.raises(Killed):
        make(tmp_path, "x", overwrite=True, stop=0)
    assert make(tmp_path, "x", overwrite=True) == [False, False]
    assert (tmp_path / "a").read_text() == "note x"
