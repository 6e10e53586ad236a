"""The pages of a map that are let go of: all of its own, and none of what lies behind it in memory."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
from sculpt.fusion.checkpoint import pages
from sculpt.fusion.checkpoint.mapped_file import MappedFile

PAGE = mmap.PAGESIZE


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="needs such a system call")
@pytest.mark.parametrize("nbytes", [3 * PAGE - 5, 3 * PAGE, 3 * PAGE + 5])
def test_nothing_behind_a_map_is_let_go_of(nbytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[tuple[int, int]] = []
    monkeypatch.setattr(pages, "_madvise", lambda: lambda start, length, _: dropped.append((start, start + length)))
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(1, 251)) * (nbytes // 250 + 1))
    with file.open("r+b") as stream:
        stream.truncate(nbytes)
    mapped = MappedFile(file)
    first = mapped.content().__array_interface__["data"][0]
    whole = -(-nbytes // PAGE) * PAGE
    for start in (nbytes - 10, 2 * PAGE - 10, 0):
        for stop in (nbytes, nbytes - 1):
            mapped.release(start, stop)
    pages.drop(mapped.content(), 0, nbytes + PAGE)  # as of a file that has become shorter
    assert dropped[0] == (first, first + whole)  # the end of the file lets go of all
    assert all(first <= start <= stop <= first + whole for start, stop in dropped)
