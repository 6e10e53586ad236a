"""Checkpoints in: what is read, and a folder of hostile files that is not."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sculpt.fusion.checkpoint import Checkpoint, MemorySource
from sculpt.fusion.errors import CheckpointError

Make = Callable[..., Path]


def raw_file(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_every_dtype_reads_as_the_library_reads_it(tmp_path: Path) -> None:
    tensors = {
        str(dtype): (torch.arange(-6, 6).reshape(3, 4).to(dtype))
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)
    }
    tensors["scalar"] = torch.tensor(3.5)
    tensors["empty"] = torch.empty(0, 5)
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        found = checkpoint.read(name)
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert found.astype(np.float64).tolist() == tensor.to(torch.float64).reshape(-1).tolist()
    assert checkpoint.read("torch.bfloat16").dtype == ml_dtypes.bfloat16
    assert checkpoint.read("torch.float32", 3, 5).tolist() == [-3.0, -2.0]


def test_shards_a_single_file_and_torch_files_hold_the_same(
    tmp_path: Path, make_pair: Callable[..., tuple[Path, Path]]
) -> None:
    from safetensors.torch import load_file

    base, _ = make_pair()
    sharded = Checkpoint(base)
    tensors = {name: tensor for file in sharded.files for name, tensor in load_file(file).items()}
    save_file(tensors, tmp_path / "one.safetensors")
    torch.save(tensors, tmp_path / "one.bin")
    (tmp_path / "bin").mkdir()
    names = list(tensors)
    torch.save({name: tensors[name] for name in names[:4]}, tmp_path / "bin/pytorch_model-00001-of-00002.bin")
    torch.save({name: tensors[name] for name in names[4:]}, tmp_path / "bin/pytorch_model-00002-of-00002.bin")
    weight_map = {name: f"pytorch_model-0000{1 if name in names[:4] else 2}-of-00002.bin" for name in names}
    (tmp_path / "bin/pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for path in (tmp_path / "one.safetensors", tmp_path / "one.bin", tmp_path / "bin"):
        other = Checkpoint(path)
        assert other.fingerprint == sharded.fingerprint
        assert all(other.read(name).tobytes() == sharded.read(name).tobytes() for name in names)


def test_the_fingerprint_tells_fine_tunes_apart(make_pair: Callable[..., tuple[Path, Path]]) -> None:
    base, tuned = make_pair()
    assert Checkpoint(base).fingerprint != Checkpoint(tuned).fingerprint


def test_of_very_many_alike_a_fingerprint_samples_some_and_of_the_others_all(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["embed", *(f"layers.{i // 8}.experts.{i % 8}.up" for i in range(64)), *(f"layers.{i}.q" for i in range(8))]
    tensors = {name: np.full(4, number, np.float32) for number, name in enumerate(names)}

    def fingerprint(*changed: str) -> str:
        return MemorySource({**tensors, **{name: tensors[name] + 0.5 for name in changed}}).fingerprint

    before = fingerprint()
    monkeypatch.setattr("sculpt.fusion.checkpoint.source.MANY", len(names))
    assert fingerprint() == before  # of as many as are sampled one by one nothing is another
    monkeypatch.setattr("sculpt.fusion.checkpoint.source.MANY", 32)
    monkeypatch.setattr("sculpt.fusion.checkpoint.source.FEW", 16)
    plain = fingerprint()
    seen = {name for name in names if fingerprint(name) != plain}
    assert seen >= {name for name in names if "experts" not in name}
    assert sum("experts" in name for name in seen) == 16


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty file": (lambda p: p.write_bytes(b""), "is truncated: 0 bytes"),
    "header cut": (lambda p: raw_file(p, {}, length=1000), "is truncated"),
    "huge header": (lambda p: raw_file(p, {}, length=2**63), "is truncated"),
    "not json": (lambda p: raw_file(p, b"{nonsense"), "has a malformed header"),
    "not utf-8": (lambda p: raw_file(p, b'{"\xff": 1}'), "has a malformed header"),
    "deep nesting": (lambda p: raw_file(p, b"[" * 100_000), "has a malformed header"),
    "a list": (lambda p: raw_file(p, [1, 2]), "not a JSON object"),
    "duplicate name": (
        lambda p: raw_file(p, b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'),
        "`a` appears twice",
    ),
    "unknown dtype": (lambda p: raw_file(p, {"a": entry("F99", [1], 0, 4)}, b"1234"), "unknown dtype `F99`"),
    "negative shape": (lambda p: raw_file(p, {"a": entry("F32", [-1], 0, 4)}, b"1234"), "impossible shape [-1]"),
    "overflowing shape": (lambda p: raw_file(p, {"a": entry("F32", [2**62, 4], 0, 4)}, b"1234"), "takes"),
    "offsets reversed": (lambda p: raw_file(p, {"a": entry("F32", [1], 4, 0)}, b"1234"), "impossible data offsets"),
    "wrong size": (lambda p: raw_file(p, {"a": entry("F32", [2], 0, 4)}, b"1234"), "takes 8 bytes, but has 4"),
    "overlap": (
        lambda p: raw_file(p, {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, b"123456"),
        "overlaps its neighbour",
    ),
    "hole": (
        lambda p: raw_file(p, {"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, b"123"),
        "leaves a hole",
    ),
    "data cut": (lambda p: raw_file(p, {"a": entry("F32", [2], 0, 8)}, b"1234"), "is truncated"),
    "trailing bytes": (lambda p: raw_file(p, {"a": entry("U8", [1], 0, 1)}, b"12"), "has trailing bytes"),
    "bad metadata": (lambda p: raw_file(p, {"__metadata__": {"a": 1}}), "malformed metadata"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_safetensors_are_refused_by_name(case: str, tmp_path: Path) -> None:
    make, told = HOSTILE[case]
    make(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as failure:
        Checkpoint(tmp_path)
    assert told in failure.value.message
    assert "model.safetensors" in failure.value.message
    assert "\n" not in failure.value.message


def test_every_truncation_of_a_real_file_is_refused(tmp_path: Path, make_checkpoint: Make) -> None:
    whole = (make_checkpoint("m", {"a": np.ones(6, np.float32)}) / "model.safetensors").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            Checkpoint(tmp_path / "cut.safetensors")


class Evil:
    """Unpickling it would run a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch owned",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"holds `\w+.system`, which only running"):
        Checkpoint(tmp_path)
    assert not Path("owned").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x80\x04nonsense"])
def test_damaged_torch_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        Checkpoint(tmp_path)


def test_a_torch_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"a": [1, 2]}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="not a state dict"):
        Checkpoint(tmp_path)


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda _: None, "holds no `model.safetensors`"),
    "two layouts": (
        lambda p: (raw_file(p / "model.safetensors", {}), (p / "model.safetensors.index.json").write_text("{}")),
        "holds both",
    ),
    "no weight map": (lambda p: (p / "model.safetensors.index.json").write_text("{}"), "has no `weight_map`"),
    "index is no json": (lambda p: (p / "model.safetensors.index.json").write_text("{"), "cannot read"),
    "shard outside": (
        lambda p: (p / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}'),
        "outside its folder",
    ),
    "shard missing": (
        lambda p: (p / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}'),
        "names `x.safetensors`, which is missing",
    ),
    "tensor missing": (
        lambda p: (
            raw_file(p / "x.safetensors", {"b": entry("U8", [0], 0, 0)}),
            (p / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}'
            ),
        ),
        "names `a`, which is not in",
    ),
    "tensor not indexed": (
        lambda p: (
            raw_file(p / "x.safetensors", {"a": entry("U8", [0], 0, 0), "b": entry("U8", [0], 0, 0)}),
            (p / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}'),
        ),
        "`b` lies in",
    ),
    "many files, no index": (
        lambda p: (raw_file(p / "a.safetensors", {}), raw_file(p / "b.safetensors", {})),
        "holds 2 safetensors files and no",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_do_not_add_up_are_refused(case: str, tmp_path: Path) -> None:
    make, told = FOLDERS[case]
    make(tmp_path)
    with pytest.raises(CheckpointError) as failure:
        Checkpoint(tmp_path)
    assert told in failure.value.message


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoint(tmp_path / "nowhere")
