"""With `--stream` weights are read by ranges: the same bytes out, no copy on the disk, and few bytes for a look."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sculpt
from safetensors.numpy import save_file
from sculpt.fusion import ref
from sculpt.fusion.checkpoint import find_model, open_checkpoint
from sculpt.fusion.errors import CheckpointError
from sculpt.fusion.places import ranges
from sculpt.fusion.places.pointer import Pointer, read_pointer
from sculpt.fusion.places.ranges import Ranged
from sculpt.fusion.places.settings import streaming

from ...commands import run
from .file_server import FileServer
from .local_hub import LocalHub

Pair = Callable[..., tuple[Path, Path]]


@pytest.fixture(autouse=True)
def small_blocks(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of which these models have many, and room for a few."""
    monkeypatch.setattr(ranges, "BLOCK", 1 << 14)
    monkeypatch.setattr(ranges, "SMALL", 1 << 13)  # a sample of a fingerprint is half of it
    monkeypatch.setattr(ranges, "HELD", 1 << 16)
    ranges._blocks.cache_clear()
    ranges._known.clear()


def same_outputs(first: str, second: str) -> bool:
    """Return whether two outputs agree in all but what names their inputs."""
    files = {file.name for file in Path(first).iterdir()}
    assert files == {file.name for file in Path(second).iterdir()}
    told = [json.loads((Path(folder) / "sculpt-manifest.json").read_text()) for folder in (first, second)]
    digests = [[one["files"] for one in manifest["inputs"]] for manifest in told]
    assert digests[0] == digests[1]
    assert told[0]["tensors"] == told[1]["tensors"]
    same = files - {"sculpt-manifest.json", "README.md"}
    return all((Path(first) / name).read_bytes() == (Path(second) / name).read_bytes() for name in same)


def no_weights_under(folder: Path) -> bool:
    found = [read_pointer(file) for file in folder.rglob("*.safetensors")]
    return bool(found) and None not in found


def test_a_pointer_in_a_folder_of_anybody_is_not_followed(make_pair: Pair, here: Path) -> None:
    base, tuned = make_pair()
    weights = next(tuned.glob("*.safetensors"))
    Pointer(place="https://example.invalid/model.safetensors", nbytes=weights.stat().st_size, etag="1").write(weights)
    assert read_pointer(weights) is None
    with pytest.raises(CheckpointError, match=weights.name):
        sculpt.diff(base, tuned)


def test_a_hub_that_is_streamed_makes_the_same_bytes_with_no_copy(hub: LocalHub, make_pair: Pair, here: Path) -> None:
    base, tuned = make_pair()
    hub.put("org/model", base, "v1")
    hub.put("org/model", tuned, "v2")
    hub.faults = {"GET /cdn/": [503, 500]}
    run("dare", "org/model@v1", "org/model@v2", "--stream", "-o", "streamed")
    run("dare", base, tuned, "-o", "local")
    assert same_outputs("streamed", "local")
    assert no_weights_under(Path(os.environ["SCULPT_CACHE"]).parent)  # the hub's own cache is beside ours
    assert not [path for _, path, span in hub.asked_for(".safetensors") if span is None]


@pytest.mark.parametrize("method", ["dare", "ties"])
def test_a_bucket_that_is_streamed_makes_the_same_bytes(
    s3: Any, make_pair: Pair, here: Path, places: Path, method: str
) -> None:
    base, tuned = make_pair("float32")
    for folder in (base, tuned):
        s3.put(str(folder), f"bucket/{folder.name}", recursive=True)
    run(method, "s3://bucket/base", "s3://bucket/sft", "--stream", "-o", "streamed", "--threads", 3)
    run(method, base, tuned, "-o", "local")
    assert same_outputs("streamed", "local")
    assert no_weights_under(places)
    run("verify", "streamed", "--input", "s3://bucket/base", "--stream")


def test_a_model_that_is_streamed_runs_as_one_that_lies_here(s3: Any, here: Path, places: Path) -> None:
    from sculpt.demo.tiny import byte_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    base, tokenizer = here / "base", byte_tokenizer()
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    s3.put(str(base), "bucket/base", recursive=True)
    rows = [{"prompt": "Sky is", "completion": f" {color}"} for color in ("blue", "green", "red")]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("suite.yaml").write_text("target:\n  colors: {scorer: perplexity, file: rows.jsonl}\n")
    run("calibrate", "s3://bucket/base", "--stream", "--data", "rows.jsonl", "--device", "cpu", "-o", "far.safetensors")
    run("calibrate", base, "--data", "rows.jsonl", "--device", "cpu", "-o", "near.safetensors")
    far, near = (sculpt.DiagonalHessian.load(f"{name}.safetensors") for name in ("far", "near"))
    assert far.keys() == near.keys()
    for name, found in near.items():
        for ours, theirs in zip(found.terms, far[name].terms, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    scores = []
    for model in ("s3://bucket/base", base):
        told = run("eval", model, "--suite", "suite.yaml", "--device", "cpu", "--json", "--stream")
        scores.append(json.loads(told[told.index("{") :])["tasks"])
    assert scores[0] == scores[1]
    assert no_weights_under(places)


def test_a_web_server_that_fails_now_and_then_makes_the_same_bytes(
    web: FileServer, make_pair: Pair, here: Path
) -> None:
    base, tuned = make_pair()
    web.faults = {"GET .*safetensors": [500, -1, 0.05, 503, -1, 429, 0.05, -1]}
    run("dare", f"{web.url}/base", f"{web.url}/sft", "--stream", "-o", "streamed")
    run("dare", base, tuned, "-o", "local")
    assert same_outputs("streamed", "local")


def test_headers_alone_are_read_to_inspect_and_to_plan(
    web: FileServer, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sculpt.api.check_output", lambda *_, **__: None)  # which imports torch
    tensors = {f"model.layers.{k}.weight": np.zeros((300, 500), np.float32) for k in range(8)}
    for name in ("one", "two"):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    size = (tmp_path / "one.safetensors").stat().st_size
    assert "8 tensors" in run("inspect", f"{web.url}/one.safetensors")
    assert web.bytes_of("one.safetensors") <= 2 * ranges.SMALL
    run("dare", f"{web.url}/one.safetensors", f"{web.url}/two.safetensors", "--dry-run")
    assert web.bytes_of("one.safetensors") < size / 10


def test_each_byte_is_fetched_about_once(
    web: FileServer, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "BLOCK", 1 << 18)
    monkeypatch.setattr(ranges, "HELD", 1 << 22)
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        tensors = {f"model.layers.{k}.weight": rng.standard_normal((300, 500), np.float32) for k in range(8)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    size = (tmp_path / "one.safetensors").stat().st_size
    run("dare", f"{web.url}/one.safetensors", f"{web.url}/two.safetensors", "--stream", "--threads", 1, "-o", "out")
    assert web.bytes_of("one.safetensors") < 1.2 * size


def test_a_file_that_changes_while_it_is_streamed_is_refused(s3: Any, make_pair: Pair, here: Path) -> None:
    base, tuned = make_pair(shards=1)
    s3.put(str(base), "bucket/base", recursive=True)
    with streaming():
        opened = open_checkpoint("s3://bucket/base")
        name = next(iter(opened.tensors))
        opened.read(name)
        opened.refuse_changed()
        s3.put(str(tuned / "model.safetensors"), "bucket/base/model.safetensors")
        with pytest.raises(CheckpointError, match="changed while it was read"):
            opened.refuse_changed()


def test_blocks_that_are_held_are_bounded(web: FileServer, tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 200_000, np.uint8).tobytes()
    (tmp_path / "one.safetensors").write_bytes(content)
    info = Pointer(place=f"{web.url}/one.safetensors", nbytes=len(content), etag="")
    read = Ranged(info)
    for start in range(0, len(content), 7_001):
        assert read.read(start, min(start + 7_001, len(content))).tobytes() == content[start : start + 7_001]
        assert ranges._blocks().nbytes <= ranges.HELD + 4 * ranges.BLOCK


@pytest.mark.parametrize("order", ["forward", "backward", "nothing"])
def test_the_digest_is_that_of_the_file_in_whatever_order_it_is_read(
    web: FileServer, tmp_path: Path, order: str
) -> None:
    import hashlib

    content = np.random.default_rng(0).integers(0, 256, 90_001, np.uint8).tobytes()
    (tmp_path / "one.safetensors").write_bytes(content)
    read = Ranged(Pointer(place=f"{web.url}/one.safetensors", nbytes=len(content), etag=""))
    read.hash_with(hashlib.sha256)
    starts = {"forward": range(0, 90_000, 3_000), "backward": range(87_000, -1, -3_000), "nothing": []}[order]
    for start in starts:
        read.read(start, start + 3_000)
    assert read.digest(hashlib.sha256) == hashlib.sha256(content).hexdigest()
    assert read.digest(hashlib.blake2b) == hashlib.blake2b(content).hexdigest()


def test_python_streams_in_a_block(web: FileServer, make_pair: Pair, here: Path, places: Path) -> None:
    make_pair()
    with sculpt.streaming():
        done = sculpt.fuse(f"{web.url}/base", f"{web.url}/sft", method="dare", output="out")
    assert done.inputs[0].name == f"{web.url}/base"
    assert no_weights_under(places)
    ref.FOUND.clear()
    assert not no_weights_under(find_model(f"{web.url}/base").path)
