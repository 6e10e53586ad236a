"""A suite to begin with: what it may replace, and how a run that was cut short goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from sculpt.evaluate import starter
from sculpt.evaluate.suite import read_suite
from sculpt.fusion.errors import OutputError


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a b"}\n')
    return file


def test_neither_an_input_nor_what_sculpt_did_not_write_is_replaced(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"weights")
    (tmp_path / "link.yaml").symlink_to(rows)
    (tmp_path / "mine-general.jsonl").write_text("precious")
    for output, said in (
        (rows, "is the input"),
        (tmp_path / "weights", "not a suite that sculpt wrote"),
        (tmp_path / "link.yaml", "is the input|is a link"),
        (tmp_path / "mine.yaml", "not a file of texts that sculpt wrote"),
    ):
        with pytest.raises(OutputError, match=said):
            starter.write_suite(output, rows, None, limit=1, overwrite=True)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["link.yaml", "mine-general.jsonl", "rows.jsonl", "weights"]
    assert (tmp_path / "weights").read_bytes() == b"weights"
    assert rows.read_text() == '{"text": "a b"}\n'


def test_what_a_killed_run_wrote_is_not_in_the_way(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, beside = tmp_path / "suite.yaml", tmp_path / "suite-general.jsonl"
    starter.write_suite(output, rows, None, limit=1)
    output.unlink()
    starter.write_suite(output, rows, None, limit=1)
    assert [task.file for _, _, task in read_suite(output).tasks()] == [Path(beside.name), Path(rows.name)]
    with pytest.raises(OutputError, match="exists"):
        starter.write_suite(output, rows, None, limit=1)
    starter.write_suite(output, rows, None, limit=2, overwrite=True)

    write = starter.write_file

    def fail(file: Path, *arguments: object, **options: object) -> None:
        if file == output:
            raise OutputError("the disk is full")
        write(file, *arguments, **options)  # pyright: ignore[reportArgumentType]

    output.unlink()
    beside.unlink()
    monkeypatch.setattr(starter, "write_file", fail)
    with pytest.raises(OutputError, match="full"):
        starter.write_suite(output, rows, None, limit=1)
    assert list(tmp_path.iterdir()) == [rows]
