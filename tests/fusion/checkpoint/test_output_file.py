"""A file written in parts, from any thread, in any order, past the page cache or through it."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sculpt.fusion.checkpoint.output import output_file
from sculpt.fusion.checkpoint.output.output_file import MIN_DIRECT_BYTES, PAGE, OutputFile, page_aligned

SIZE = MIN_DIRECT_BYTES + 3 * output_file.SEGMENT + 1234


@pytest.fixture(scope="module")
def content() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)


def parts(content: np.ndarray, sizes: list[int], seed: int | None) -> list[tuple[int, np.ndarray]]:
    """Cut the content; some parts lie in memory as they will lie in the file, others do not."""
    found, start, choice = [], 0, random.Random(seed or 0)
    while start < content.size:
        piece = content[start : start + choice.choice(sizes)]
        room = page_aligned(PAGE + piece.size)[start % PAGE :] if choice.random() < 0.7 else np.empty(SIZE, np.uint8)
        room[: piece.size] = piece
        found.append((start, room[: piece.size]))
        start += piece.size
    if seed is not None:
        choice.shuffle(found)
    return found


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("sizes", [[1 << 21], [100, 5000, 300_000, 1 << 20], [4096, 262_144]])
def test_any_parts_in_any_order_give_the_file_and_its_digest(
    content: np.ndarray, tmp_path: Path, sizes: list[int], seed: int | None
) -> None:
    file = OutputFile(tmp_path / "out", SIZE, hashlib.sha256)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda part: file.write(*part), parts(content, sizes, seed)))
    digest = file.digest()
    file.sync()
    file.close()
    assert np.array_equal(np.fromfile(tmp_path / "out", np.uint8), content)
    assert digest == hashlib.sha256(content).hexdigest()


def test_a_file_that_is_written_holds_no_memory(content: np.ndarray, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        file = OutputFile(tmp_path / "out", SIZE, hashlib.sha256)
        for start in reversed(range(0, SIZE, 700_001)):
            file.write(start, content[start : start + 700_001])
        held, peak = tracemalloc.get_traced_memory()
        file.close()
    finally:
        tracemalloc.stop()
    assert peak - before > output_file.SEGMENT  # parts wait for neighbours, and to be hashed in order
    assert held - before < output_file.SEGMENT


def test_a_part_that_is_written_again_counts(content: np.ndarray, tmp_path: Path) -> None:
    file = OutputFile(tmp_path / "out", SIZE, hashlib.sha256)
    for start, data in parts(content, [700_000], 3):
        file.write(start, np.zeros_like(data))
        file.write(start, data)
    digest = file.digest()
    file.close()
    assert np.array_equal(np.fromfile(tmp_path / "out", np.uint8), content)
    assert digest == hashlib.sha256(content).hexdigest()


def test_a_resumed_file_is_hashed_whole(content: np.ndarray, tmp_path: Path) -> None:
    found = parts(content, [700_000], None)
    for half in (found[::2], found[1::2]):
        file = OutputFile(tmp_path / "out", SIZE, hashlib.sha256, resumed=half is not found[::2])
        for part in half:
            file.write(*part)
        file.flush()
        digest = file.digest()
        file.close()
    assert np.array_equal(np.fromfile(tmp_path / "out", np.uint8), content)
    assert digest == hashlib.sha256(content).hexdigest()


def test_a_file_system_without_direct_writes_is_written_to(
    content: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system_open = os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")
        return system_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    file = OutputFile(tmp_path / "out", SIZE, hashlib.sha256)
    for part in parts(content, [1 << 20], 1):
        file.write(*part)
    assert file.digest() == hashlib.sha256(content).hexdigest()
    file.close()


def test_segments_that_wait_too_long_are_written_by_pieces(
    content: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_file, "MAX_WAITING", 2)
    file = OutputFile(tmp_path / "out", SIZE, hashlib.sha256)
    for part in parts(content, [50_000], 5):
        file.write(*part)
    digest = file.digest()
    file.close()
    assert np.array_equal(np.fromfile(tmp_path / "out", np.uint8), content)
    assert digest == hashlib.sha256(content).hexdigest()
