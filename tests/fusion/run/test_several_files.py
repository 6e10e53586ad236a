"""Many threads go through several files side by side, and write the bytes that one thread writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sculpt
import xxhash
from sculpt.fusion.plan.step import Step
from sculpt.fusion.run import loop
from sculpt.fusion.run.task import Context, TensorTask

Pair = Callable[..., tuple[Path, Path]]


def test_many_threads_begin_with_several_files(
    make_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = make_pair(shards=4)
    begun: list[str] = []

    def noted(step: Step, context: Context) -> TensorTask:
        begun.append(context.sink.file_of(step.name))
        return TensorTask(step, context)

    monkeypatch.setattr(loop, "TensorTask", noted)
    monkeypatch.setattr(loop, "BATCH", 1)  # as if each tensor were large
    manifests = {}
    for threads in (1, 2 * loop.THREADS_A_FILE):
        begun.clear()
        manifests[threads] = sculpt.fuse(
            base,
            tuned,
            output=tmp_path / f"out-{threads}",
            method=sculpt.Dare(),
            calibration=False,
            settings=sculpt.Settings(threads=threads),
        )
        assert len(set(begun[:2])) == (1 if threads == 1 else 2)
        assert (begun == sorted(begun)) == (threads == 1)
    one, many = manifests.values()
    assert one.outputs == many.outputs
    assert one.tensors == many.tensors
    assert one.inputs == many.inputs
    for record in one.inputs[0].files:
        assert record.digest == f"xxh3-128:{xxhash.xxh3_128_hexdigest((base / record.name).read_bytes())}"
