"""Two processes against one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sculpt
from safetensors.numpy import load_file, save_file
from sculpt.hessian import DiagonalHessian, calibrate

from . import zoo

Together = Callable[..., list[tuple[int, str]]]


def test_two_processes_give_the_statistics_of_one(together: Together, tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.ALL["mixtral"], tmp_path, num_rows=5)
    target = tmp_path / "two.safetensors"
    options = ("--full", "*", "--batch-size", 1, "--device", "cpu")
    done = together(2, tmp_path, ("calibrate", folder, "--data", data, *options, "-o", target))
    assert [code for code, _ in done] == [0, 0], done
    two, one = DiagonalHessian.load(target), calibrate(folder, data=data, full=["*"], batch_size=1)
    assert set(two) == set(one)
    assert two.provenance == one.provenance
    assert two.why_missing == one.why_missing
    for tensor in one:
        assert two[tensor].num_tokens == one[tensor].num_tokens
        for own, other in zip(one[tensor].terms, two[tensor].terms, strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-12, err_msg=tensor)
        ours, theirs = one[tensor].gram, two[tensor].gram
        assert (ours is None) == (theirs is None), tensor
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(ours.max()), err_msg=tensor)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert not list(tmp_path.glob("*.partial"))


def test_two_processes_fuse_what_they_measured_together(together: Together, tmp_path: Path) -> None:
    base, data = zoo.settle(zoo.ALL["mixtral"], tmp_path, num_rows=5)
    general, tuned = tmp_path / "general.jsonl", tmp_path / "sft"
    zoo.write_rows(zoo.ALL["mixtral"], general, num_rows=4, seed=2)
    shutil.copytree(base, tuned)
    rng = np.random.default_rng(0)
    tensors = load_file(base / "model.safetensors")
    moved = {name: (a + 0.02 * rng.standard_normal(a.shape)).astype(a.dtype) for name, a in tensors.items()}
    save_file(moved, tuned / "model.safetensors", metadata={"format": "pt"})
    command = ("fuse", base, tuned, "--data", data, "--protect", general, "--batch-size", 1)
    command += ("-o", tmp_path / "two", "--json")
    done = together(2, tmp_path, command)
    assert [code for code, _ in done] == [0, 0], done
    calibration = sculpt.Calibration(data=data, protect=general, batch_size=1)
    protection = sculpt.Protection()
    sculpt.fuse(base, tuned, calibration=calibration, protection=protection, output=tmp_path / "one")
    first, second = (sculpt.Manifest.read(tmp_path / name) for name in ("one", "two"))
    assert first.curvature == second.curvature
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in tensors:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5, err_msg=name)
    assert f'"output": "{tmp_path / "two"}"' in done[0][1]
    assert done[1][1] == "2\n"  # the first alone speaks
