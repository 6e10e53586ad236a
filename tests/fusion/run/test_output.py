"""Checkpoints out: whole or not at all, resumable, and readable by the libraries that matter."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sculpt
from sculpt.fusion.checkpoint import Checkpoint
from sculpt.fusion.errors import CheckpointError, MethodError, OutputError
from sculpt.fusion.methods import Dare

Pair = Callable[..., tuple[Path, Path]]
Make = Callable[..., Path]


def fuse(pair: tuple[Path, Path], output: Path, **options: object) -> sculpt.Manifest:
    return sculpt.fuse(pair[0], pair[1], output=output, method=Dare(), calibration=False, **options)  # pyright: ignore[reportArgumentType]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_layout_is_the_bases_and_the_index_is_sorted(make_pair: Pair, tmp_path: Path) -> None:
    pair = make_pair()
    fuse(pair, tmp_path / "out")
    before, after = Checkpoint(pair[0]), Checkpoint(tmp_path / "out")
    assert [file.name for file in after.files] == [file.name for file in before.files]
    assert {n: i.file.name for n, i in after.tensors.items()} == {n: i.file.name for n, i in before.tensors.items()}
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert list(index["weight_map"]) == sorted(index["weight_map"])
    assert index["metadata"]["total_size"] == after.nbytes


def test_shards_stay_under_the_size_asked_for(make_pair: Pair, tmp_path: Path) -> None:
    pair = make_pair()
    fuse(pair, tmp_path / "out", settings=sculpt.Settings(max_shard_bytes=8000))
    out = Checkpoint(tmp_path / "out")
    sizes = [sum(i.nbytes for i in out.tensors.values() if i.file == file) for file in out.files]
    assert max(sizes) <= 8000
    assert out.files[0].name == f"model-00001-of-{len(sizes):05d}.safetensors"
    fuse(pair, tmp_path / "one", settings=sculpt.Settings(max_shard_bytes=10**9))
    assert [file.name for file in Checkpoint(tmp_path / "one").files] == ["model.safetensors"]


def test_mixed_dtypes_are_aligned(make_checkpoint: Make, tmp_path: Path) -> None:
    tensors = {
        "a": np.array([True] * 3),
        "b": np.ones(5, np.float16),
        "c": np.ones(3, np.float32),
        "d": np.arange(2),
        "e": np.ones(3, np.float64),
    }
    fuse((make_checkpoint("b", tensors), make_checkpoint("t", tensors)), tmp_path / "out")
    out = Checkpoint(tmp_path / "out")
    for name, info in out.tensors.items():
        _, first, last = out.stored(name) or pytest.fail("mapped files say where a tensor lies")
        assert last - first == info.nbytes
        assert first % (info.nbytes // info.num_elements) == 0


def test_companion_files_come_from_the_chosen_side(make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    for side in (base, tuned):
        (side / "tokenizer.json").write_text(json.dumps(side.name))
        (side / "custom_code").mkdir()
        (side / "custom_code/modeling.py").write_text(f"# {side.name}")
        (side / "README.md").write_text("the card of an input")
        (side / "training_args.bin").write_bytes(b"weights of another kind")
        (side / ".git").mkdir()
        (side / ".git/HEAD").write_text("hidden")
    fuse((base, tuned), tmp_path / "out")
    fuse((base, tuned), tmp_path / "out-base", settings=sculpt.Settings(config_from="base"))
    assert (tmp_path / "out/tokenizer.json").read_text() == json.dumps("sft")
    assert (tmp_path / "out-base/tokenizer.json").read_text() == json.dumps("base")
    assert (tmp_path / "out/custom_code/modeling.py").read_text() == "# sft"
    card = (tmp_path / "out/README.md").read_text()
    assert "- merge" in card
    assert "base_model:" not in card  # two folders are no names on the hub
    assert "the card of an input" not in card
    assert not (tmp_path / "out/.git").exists()
    assert not (tmp_path / "out/training_args.bin").exists()


def test_an_existing_output_is_refused_and_then_replaced_whole(make_pair: Pair, tmp_path: Path) -> None:
    pair = make_pair()
    fuse(pair, tmp_path / "out")
    with pytest.raises(OutputError, match="exists"):
        fuse(pair, tmp_path / "out")
    (tmp_path / "out/stale.safetensors").write_bytes(b"of an older run")
    fuse(pair, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out/stale.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "sft"]


def test_overwrite_spares_what_sculpt_did_not_write(make_pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="not a checkpoint that sculpt wrote"):
        fuse(make_pair(), tmp_path / "precious", overwrite=True)
    assert (tmp_path / "precious/thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("where", ["base", "base/out", "sft/deep/out", "."])
def test_an_output_that_touches_an_input_is_refused(where: str, make_pair: Pair, tmp_path: Path) -> None:
    pair = make_pair()
    before = files_of(tmp_path)
    with pytest.raises(OutputError):
        fuse(pair, tmp_path / where, overwrite=True)
    assert files_of(tmp_path) == before


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    make_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_pair()
    real = os.pwrite

    def full(descriptor: int, data: object, position: int) -> int:
        if position > 9000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, position)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="the disk is full: cannot write"):
        fuse(pair, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "sft"]


def test_a_file_size_limit_of_the_system_is_one_sentence(make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    limited = subprocess.run(
        [sys.executable, "-m", "sculpt", "dare", str(base), str(tuned), "-o", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: __import__("resource").setrlimit(__import__("resource").RLIMIT_FSIZE, (5000, 5000)),
    )
    assert limited.returncode == 1
    assert limited.stderr.startswith("error: cannot write `")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "sft"]


def test_too_little_disk_is_refused_before_anything_is_written(
    make_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sculpt.fusion.run.prepared.free_bytes", lambda _output: 1000)
    with pytest.raises(OutputError, match="and its disk has 1 kB free"):
        fuse(make_pair(), tmp_path / "out")


class Stop(BaseException):
    """An interrupt, as the command line raises it."""


@pytest.mark.parametrize("after", [1, 4, 8])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(after: int, make_pair: Pair, tmp_path: Path) -> None:
    pair = make_pair()
    fuse(pair, tmp_path / "plain" / "out")
    finished: list[str] = []

    def stop(_done: int, _total: int, name: str) -> None:
        finished.append(name)
        if len(finished) == after:
            raise Stop

    with pytest.raises(Stop):
        fuse(pair, tmp_path / "out", progress=stop)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial").exists()
    again: list[str] = []
    fuse(pair, tmp_path / "out", progress=lambda _done, _total, name: again.append(name))
    assert not set(again) & set(finished)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "plain" / "out")
    assert not (tmp_path / "out.partial").exists()


def test_a_killed_process_goes_on_where_it_was(make_pair: Pair, tmp_path: Path) -> None:
    pair = make_pair()
    fuse(pair, tmp_path / "plain" / "out")
    script = (
        "import os, signal, sys, sculpt\n"
        "count = 0\n"
        "def progress(done, total, name):\n"
        "    global count\n"
        "    count += 1\n"
        "    if count == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sculpt.fuse(sys.argv[1], sys.argv[2], output=sys.argv[3], method=sculpt.Dare(), calibration=False,\n"
        "            progress=progress)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, *map(str, pair), str(tmp_path / "out")])
    assert killed.returncode == -signal.SIGKILL
    again: list[str] = []
    fuse(pair, tmp_path / "out", progress=lambda _done, _total, name: again.append(name))
    assert 0 < len(again) <= len(Checkpoint(pair[0]).tensors) - 5
    assert files_of(tmp_path / "out") == files_of(tmp_path / "plain" / "out")


def test_resuming_does_not_trust_a_journal_over_the_bytes(make_pair: Pair, tmp_path: Path) -> None:
    pair = make_pair()
    fuse(pair, tmp_path / "plain" / "out")

    def stop(_done: int, _total: int, _name: str) -> None:
        raise Stop

    with pytest.raises(Stop):
        fuse(pair, tmp_path / "out", progress=stop)
    for file in (tmp_path / "out.partial").rglob("*.safetensors"):  # as after a power cut: lengths right, data lost
        file.write_bytes(bytes(file.stat().st_size))
    fuse(pair, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "plain" / "out")


def test_other_options_do_not_resume_anothers_run(make_pair: Pair, tmp_path: Path) -> None:
    pair = make_pair()

    def stop(_done: int, _total: int, _name: str) -> None:
        raise Stop

    with pytest.raises(Stop):
        fuse(pair, tmp_path / "out", progress=stop)
    again: list[str] = []
    fuse(
        pair,
        tmp_path / "out",
        settings=sculpt.Settings(seed=5),
        progress=lambda _done, _total, name: again.append(name),
    )
    assert len(again) == len(Checkpoint(pair[0]).tensors)


@pytest.mark.parametrize("digest", ["xxh3-128", "blake3", "sha256"])
def test_verify_accepts_what_was_written_and_names_what_changed(digest: str, make_pair: Pair, tmp_path: Path) -> None:
    pair = make_pair()
    fuse(pair, tmp_path / "out", settings=sculpt.Settings(digest=digest))
    assert (
        sculpt.verify(tmp_path / "out", pair).num_files == 2 + 3 + 3 + 3
    )  # two shards; index, config and card; each input
    if digest == "sha256":
        import hashlib

        file = pair[0] / "model-00001-of-00002.safetensors"
        recorded = sculpt.Manifest.read(tmp_path / "out").inputs[0].files[0]
        assert recorded.digest == "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    file = tmp_path / "out/model-00002-of-00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        sculpt.verify(tmp_path / "out")
    with pytest.raises(CheckpointError, match="holds no `sculpt-manifest"):
        sculpt.verify(pair[0])


@pytest.mark.parametrize("size", ["5 apples", "", "-3GB", "0"])
def test_sizes_that_are_none_are_refused(size: str) -> None:
    from sculpt.fusion.checkpoint.output.layout import parse_size

    with pytest.raises(MethodError, match="is not a size"):
        parse_size(size)


@pytest.mark.parametrize(("text", "nbytes"), [("5GB", 5 * 10**9), ("1.5 MiB", 3 << 19), ("700", 700), ("2k", 2000)])
def test_sizes_are_read(text: str, nbytes: int) -> None:
    from sculpt.fusion.checkpoint.output.layout import parse_size

    assert parse_size(text) == nbytes


def test_memory_stays_under_four_times_the_largest_pair(tmp_path: Path) -> None:
    """Peak resident memory of a fuse above the libraries, mapped pages included, with few tensors and with many."""
    script = (
        "import resource, sys, numpy as np, sculpt\n"
        "from sculpt.fusion import kernels\n"
        "from sculpt.fusion.run import backend, fuse\n"
        "from safetensors.numpy import save_file\n"
        "base, sft, count = sys.argv[1], sys.argv[2], int(sys.argv[3])\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "method = sculpt.AdaDare(allocation='exact')\n"
        "sculpt.fuse(base + '-warm', sft + '-warm', output=sys.argv[4] + '-warm', method=method, calibration=False)\n"
        "before = peak()\n"
        "sculpt.fuse(base, sft, output=sys.argv[4], method=method, calibration=False)\n"
        "print(peak() - before)\n"
    )
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    largest = 8 << 20  # elements of float16, 16 MiB
    peaks = {}
    for count in (4, 12):
        for side in ("base", "sft"):
            for suffix, number, size in (("", count, largest), ("-warm", 1, 1 << 19)):
                folder = tmp_path / f"{side}{count}{suffix}"
                folder.mkdir()
                save_file(
                    {f"layers.{i}.w": rng.standard_normal(size).astype(np.float16) for i in range(number)},
                    folder / "model.safetensors",
                )
        paths = [str(tmp_path / f"{side}{count}") for side in ("base", "sft")]
        done = subprocess.run(
            [sys.executable, "-c", script, *paths, str(count), str(tmp_path / f"out{count}")],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[count] = int(done.stdout)
    pair_bytes = 2 * largest * 2
    assert max(peaks.values()) < 4 * pair_bytes, peaks
    assert peaks[12] - peaks[4] < pair_bytes, peaks


def test_transformers_loads_the_output_and_it_computes(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=64,
        num_attention_heads=4,
        vocab_size=80,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path / "base", max_shard_size="10KB")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path / "sft", max_shard_size="10KB")
    fuse((tmp_path / "base", tmp_path / "sft"), tmp_path / "out", settings=sculpt.Settings(dtype="float32"))
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True, dtype="auto")
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.dtype == torch.float32
    assert torch.isfinite(loaded(torch.arange(10)[None]).logits).all()
