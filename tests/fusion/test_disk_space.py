from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from sculpt.fusion.disk_space import taken_bytes


def test_what_a_folder_takes_is_what_du_says(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "a").write_bytes(b"a" * 100_000)
    (folder / "b").touch()
    with (folder / "hole").open("wb") as file:
        file.truncate(10_000_000)
    files = [folder / "in" / "a", folder / "b", folder / "hole"]
    told = subprocess.run(["du", "-k", *files], capture_output=True, text=True, check=True).stdout
    assert taken_bytes(folder) == sum(int(line.split()[0]) for line in told.splitlines()) * 1024
    assert taken_bytes(tmp_path / "none") == 0


def test_a_file_that_another_process_takes_away_meanwhile_counts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").write_bytes(b"a" * 5000)
    kept = taken_bytes(tmp_path)
    (tmp_path / "gone").write_bytes(b"a")
    look = os.lstat

    def late(path: str) -> os.stat_result:
        if path.endswith("gone"):
            os.unlink(path)
        return look(path)

    monkeypatch.setattr(os, "lstat", late)
    assert taken_bytes(tmp_path) == kept > 0
