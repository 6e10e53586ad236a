"""The commands of `docs/many-machines.md` with two real processes each, as their launchers start them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sculpt
import torch
import yaml
from safetensors.numpy import load_file, save_file
from sculpt.hessian import DiagonalHessian, calibrate

from .hessian import zoo

TEXT = (Path(__file__).parents[1] / "docs/many-machines.md").read_text(encoding="utf-8")
# Stands in for SLURM's: two processes, told their places as it tells them.
SRUN = """#!/bin/bash
for rank in 0 1; do SLURM_PROCID=$rank SLURM_STEP_NUM_TASKS=2 "$@" & started+=($!); done
for one in "${started[@]}"; do wait "$one" || exit 1; done
"""


@pytest.fixture(scope="module", name="models")
def _models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the commands name: models, data, statistics, and commands by their names."""
    folder = tmp_path_factory.mktemp("models")
    base, data = zoo.settle(zoo.TEXT["llama"], folder, num_rows=4)
    base.rename(folder / "base")
    data.rename(folder / "train.jsonl")
    shutil.copytree(folder / "base", folder / "sft")
    tensors = load_file(folder / "base/model.safetensors")
    rng = np.random.default_rng(0)
    moved = {name: (a + 0.02 * rng.standard_normal(a.shape)).astype(a.dtype) for name, a in tensors.items()}
    save_file(moved, folder / "sft/model.safetensors", metadata={"format": "pt"})
    commands = folder / "bin"
    commands.mkdir()
    for name, line in {"sculpt": "-m sculpt", "torchrun": "-m torch.distributed.run"}.items():
        (commands / name).write_text(f'#!/bin/bash\nexec {sys.executable} {line} "$@"\n')
    (commands / "accelerate").write_text(
        f'#!/bin/bash\nexec {sys.executable} -m accelerate.commands.accelerate_cli "$@"\n'
    )
    (commands / "srun").write_text(SRUN)
    for file in commands.iterdir():
        file.chmod(0o755)
    return folder


def run(script: str, folder: Path, **environment: str) -> None:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def commands(of: str) -> list[str]:
    return re.findall(rf"^    ({of} .*)$", TEXT, re.MULTILINE)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_torchrun_calibrates_and_slurm_fuses_with_it(models: Path) -> None:
    [command] = commands("torchrun")
    run(command.replace("torchrun", "torchrun --standalone"), models)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the launcher gives each process: with another number products have other last bits
    try:
        one = calibrate(models / "sft", data=models / "train.jsonl")
    finally:
        torch.set_num_threads(threads)
    two = DiagonalHessian.load(models / "hessian.safetensors")
    assert one.provenance == two.provenance
    for name in one:
        for ours, theirs in zip(one[name].terms, two[name].terms, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, err_msg=name)  # other batches, other last bits
    [script] = blocks("bash")
    run(script, models)
    sculpt.fuse(models / "base", models / "sft", hessian=models / "hessian.safetensors", output=models / "alone")
    assert weights(models / "fused-slurm") == weights(models / "alone")


def test_pods_of_an_indexed_job_fuse(models: Path) -> None:
    job = next(found for found in map(yaml.safe_load, blocks("yaml")) if found.get("kind") == "Job")
    [container] = job["spec"]["template"]["spec"]["containers"]
    *_, script = container["command"]
    started = [f"(export JOB_COMPLETION_INDEX={k}; {script}) & pids+=($!)" for k in range(job["spec"]["completions"])]
    run("\n".join([*started, 'for one in "${pids[@]}"; do wait "$one" || exit 1; done']), models)
    method = sculpt.Dare()
    sculpt.fuse(models / "base", models / "sft", method=method, output=models / "dare", calibration=False)
    assert weights(models / "fused-pods") == weights(models / "dare")


def test_accelerate_fuses_what_it_measures(models: Path) -> None:
    configuration = next(text for text in blocks("yaml") if "distributed_type" in text)
    (models / "many.yaml").write_text(configuration)
    [command] = commands("accelerate")
    run(command, models)
    assert load_file(models / "fused/model.safetensors").keys() == load_file(models / "sft/model.safetensors").keys()
