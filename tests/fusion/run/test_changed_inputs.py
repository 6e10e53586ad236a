"""What was read is what is there: on resuming, at the end, and of the statistics too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sculpt
from safetensors.numpy import load_file, save_file
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.checkpoint.output.lines import line_of, read_lines
from sculpt.fusion.errors import CheckpointError
from sculpt.fusion.methods import AdaDare, Dare
from sculpt.hessian.store.diagonal import DiagonalHessian
from sculpt.hessian.store.provenance import Provenance

Pair = Callable[..., tuple[Path, Path]]


class Stop(BaseException):
    """An interrupt."""


def stop_after(count: int) -> Callable[[int, int, str], None]:
    left = iter(range(count - 1))

    def progress(_done: int, _total: int, _name: str) -> None:
        if next(left, None) is None:
            raise Stop

    return progress


def weights(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def negate_between_samples(file: Path) -> None:
    """Change elements of every large tensor that the fingerprint does not look at."""
    tensors = load_file(file)
    for tensor in tensors.values():
        flat = tensor.reshape(-1)
        if flat.nbytes > 40_000:
            flat[5_000:6_000] *= -1
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture
def large_pair(tmp_path: Path) -> tuple[Path, Path]:
    """Tensors so large that the fingerprint sees parts of them alone."""
    rng = np.random.default_rng(0)
    for side in ("base", "sft"):
        (tmp_path / side).mkdir()
        tensors = {f"layers.{k}.w": rng.standard_normal((160, 160)).astype(np.float32) for k in range(5)}
        save_file(tensors, tmp_path / side / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "base", tmp_path / "sft"


def test_a_file_that_was_saved_again_is_not_mixed_with_what_it_was(
    large_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, tuned = large_pair
    with pytest.raises(Stop):
        sculpt.fuse(base, tuned, output=tmp_path / "out", method=Dare(), calibration=False, progress=stop_after(3))
    fingerprint = sculpt.Checkpoint(tuned).fingerprint
    negate_between_samples(tuned / "model.safetensors")
    assert sculpt.Checkpoint(tuned).fingerprint == fingerprint
    sculpt.fuse(base, tuned, output=tmp_path / "out", method=Dare(), calibration=False)
    sculpt.fuse(base, tuned, output=tmp_path / "clean", method=Dare(), calibration=False)
    assert weights(tmp_path / "out") == weights(tmp_path / "clean")


@pytest.mark.parametrize("how", ["written to", "replaced", "removed"])
def test_a_file_that_changes_under_the_run_is_an_error(how: str, make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    file = tuned / "model-00002-of-00002.safetensors"

    def meddle(_done: int, _total: int, _name: str) -> None:
        if how == "removed":
            file.unlink(missing_ok=True)
        elif how == "replaced":
            file.with_name("new").write_bytes(file.read_bytes())
            file.with_name("new").replace(file)
        else:
            with file.open("r+b") as stream:
                stream.seek(-4, os.SEEK_END)
                stream.write(b"\0\0\0\0")

    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors` changed while it was read"):
        sculpt.fuse(base, tuned, output=tmp_path / "out", method=Dare(), calibration=False, progress=meddle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "sft"]


def test_a_file_that_is_cut_under_the_run_is_one_sentence(large_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The system ends a process that reads a mapped file beyond its end (SIGBUS)."""
    base, tuned = large_pair
    script = (
        "import os, sys\n"
        "import sculpt.fusion.run.loop as loop\n"
        "from sculpt.cli.app import main\n"
        "run = loop.run\n"
        "def cut(*arguments, **options):\n"
        "    os.truncate(sys.argv[3] + '/model.safetensors', 4096)\n"
        "    return run(*arguments, **options)\n"
        "import sculpt.fusion.run.fuse as fuse\n"
        "fuse.run = cut\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "dare", str(base), str(tuned), "-o", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == f"error: `{tuned / 'model.safetensors'}` was cut or could not be read while it was in use\n"
    assert not (tmp_path / "out").exists()


def statistics(scale: float, fingerprint: str) -> DiagonalHessian:
    about = Provenance(
        model="sft", model_fingerprint=fingerprint, model_class="X", data="d", data_digest="", num_samples=1,
        num_tokens=1, max_length=1, seed=0, dtype="float32",
    )  # fmt: skip
    found = {
        f"layers.{k}.w": Curvature(terms=(scale * (1.0 + np.arange(160.0)[None]) ** (1 + k % 2),), num_tokens=1)
        for k in range(5)
    }
    return DiagonalHessian(curvatures=found, provenance=about)


@pytest.mark.parametrize("where", ["file", "memory"])
def test_statistics_are_part_of_the_manifest_and_of_what_is_resumed(
    where: str, large_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, tuned = large_pair
    one, other = (statistics(scale, sculpt.Checkpoint(tuned).fingerprint) for scale in (1.0, 1e-4))

    def given(hessian: DiagonalHessian) -> DiagonalHessian | Path:
        if where == "memory":
            return hessian
        hessian.save(tmp_path / "hessian.safetensors")
        return tmp_path / "hessian.safetensors"

    def fuse(hessian: DiagonalHessian, output: str, after: int = 99) -> sculpt.Manifest:
        return sculpt.fuse(
            base, tuned, output=tmp_path / output, method=AdaDare(), hessian=given(hessian), progress=stop_after(after)
        )

    with pytest.raises(Stop):
        fuse(one, "out", 3)
    manifests = [fuse(other, "out"), fuse(other, "clean"), fuse(one, "one")]
    assert weights(tmp_path / "out") == weights(tmp_path / "clean") != weights(tmp_path / "one")
    assert manifests[0].curvature == manifests[1].curvature != manifests[2].curvature


def test_statistics_that_change_under_the_run_are_an_error(large_pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = large_pair
    file = tmp_path / "hessian.safetensors"
    statistics(1.0, sculpt.Checkpoint(tuned).fingerprint).save(file)
    with pytest.raises(CheckpointError, match=r"hessian.safetensors` changed while it was read"):
        sculpt.fuse(base, tuned, output=tmp_path / "out", hessian=file, progress=lambda *_: os.utime(file))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["bit", "bytes", "record", "cut", "empty", "other types"])
def test_a_damaged_journal_is_not_believed(damage: str, make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    clean = sculpt.fuse(base, tuned, output=tmp_path / "clean", method=Dare(), calibration=False)
    with pytest.raises(Stop):
        sculpt.fuse(base, tuned, output=tmp_path / "out", method=Dare(), calibration=False, progress=stop_after(5))
    journal = tmp_path / "out.partial/journal.jsonl"
    content = journal.read_bytes()
    assert len(read_lines(journal)) == 6
    lines = content.splitlines(keepends=True)
    if damage == "bit":
        content = content.replace(b'"kept": ', b'"kept":0', 1)
    elif damage == "bytes":
        content = content[:200] + b"\xff\xfe" + content[202:]
    elif damage == "record":
        content = lines[0] + lines[1].replace(b'"fuse"', b'"copy"') + b"".join(lines[2:])
    elif damage == "cut":
        content = content[:-30]
    elif damage == "empty":
        content = b""
    else:
        content = b'[]\n{"a": 1}\n7\n'
    journal.write_bytes(content)
    made = sculpt.fuse(base, tuned, output=tmp_path / "out", method=Dare(), calibration=False)
    assert weights(tmp_path / "out") == weights(tmp_path / "clean")
    assert made.tensors == clean.tensors


def test_lines_read_back_up_to_the_first_that_is_damaged(tmp_path: Path) -> None:
    entries = [{"name": f"ä{k}", "value": k} for k in range(20)]
    whole = b"".join(map(line_of, entries))
    ends = np.cumsum([len(line_of(entry)) for entry in entries])
    rng = np.random.default_rng(0)
    for _ in range(200):
        place = int(rng.integers(len(whole)))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "lines").write_bytes(damaged)
        assert read_lines(tmp_path / "lines") == entries[: int((ends <= place).sum())]
        (tmp_path / "lines").write_bytes(whole[:place])
        assert read_lines(tmp_path / "lines") == entries[: int((ends <= place).sum())]
