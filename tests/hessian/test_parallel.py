"""Two processes against one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import sculpt
from safetensors.numpy import load_file, save_file
from sculpt.hessian import DiagonalHessian, calibrate

from . import zoo  # noqa: TID251 (the tests' own folder)

SCRIPT = """
import os, sys
from sculpt.hessian import calibrate
hessian = calibrate(sys.argv[1], data=sys.argv[2], output=sys.argv[3], device="cpu", seed=0, full=["*"])
print(os.environ["RANK"], len(hessian), hessian.provenance.num_samples)
"""


def test_two_processes_give_the_statistics_of_one(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.ALL["mixtral"], tmp_path, num_rows=5)
    script, target = tmp_path / "run.py", tmp_path / "two.safetensors"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *map(str, (script, folder, data, target)),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(line.split()[0] for line in done.stdout.splitlines()) == ["0", "1"]  # two for certain
    two, one = DiagonalHessian.load(target), calibrate(folder, data=data, full=["*"])
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


def test_two_processes_fuse_what_they_measured_together(tmp_path: Path) -> None:
    base, data = zoo.settle(zoo.ALL["mixtral"], tmp_path, num_rows=5)
    general, tuned = tmp_path / "general.jsonl", tmp_path / "sft"
    zoo.write_rows(zoo.ALL["mixtral"], general, num_rows=4, seed=2)
    shutil.copytree(base, tuned)
    rng = np.random.default_rng(0)
    tensors = load_file(base / "model.safetensors")
    moved = {name: (a + 0.02 * rng.standard_normal(a.shape)).astype(a.dtype) for name, a in tensors.items()}
    save_file(moved, tuned / "model.safetensors", metadata={"format": "pt"})
    command = [sys.executable, "-m", "sculpt", "fuse", str(base), str(tuned), "--data", str(data)]
    started = [
        subprocess.Popen(
            [*command, "--protect", str(general), "-o", str(tmp_path / "two"), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    sculpt.fuse(base, tuned, data=data, protect=general, output=tmp_path / "one")
    first, second = (sculpt.Manifest.read(tmp_path / name) for name in ("one", "two"))
    assert first.curvature == second.curvature
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in tensors:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5, err_msg=name)
    assert {json.loads(out)["output"] for out, _ in told[:1]} == {str(tmp_path / "two")}
    assert told[1] == ("", "")  # the first alone speaks
