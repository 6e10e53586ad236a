"""Two processes under `accelerate launch` against one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sculpt.hessian import DiagonalHessian, calibrate

from . import zoo  # noqa: TID251 (the tests' own folder)

SCRIPT = """
import sys
from sculpt.hessian import calibrate
hessian = calibrate(sys.argv[1], data=sys.argv[2], output=sys.argv[3], device="cpu", seed=0, full=["*"])
print(len(hessian), hessian.provenance.num_samples)
"""


@pytest.mark.parametrize("name", ["mixtral", "bert"])
def test_two_processes_give_the_statistics_of_one(name: str, tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.ALL[name], tmp_path, num_rows=5)
    script, target = tmp_path / "run.py", tmp_path / "two.safetensors"
    script.write_text(SCRIPT)
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, *launch, str(script), str(folder), str(data), str(target)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
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
