"""A manifest is a function of inputs and options alone, and covers every file of the folder, itself included."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sculpt
import xxhash
from safetensors import safe_open
from sculpt.fusion.checkpoint.safetensors_file import read_header
from sculpt.fusion.errors import CheckpointError
from sculpt.fusion.file_kinds import MANIFEST, TENSORS
from sculpt.fusion.methods import METHODS
from sculpt.fusion.record.manifest import Manifest
from sculpt.fusion.record.signing import attest
from sculpt.fusion.record.verify import verify
from sculpt.fusion.run.fuse import execute
from sculpt.fusion.run.prepared import prepare

MakePair = Callable[..., tuple[Path, Path]]


def fuse(pair: tuple[Path, Path], output: Path, method: str = "dare", **settings: Any) -> Path:
    prepared = prepare(
        pair[0], [pair[1]], output=output, method=METHODS[method](), settings=sculpt.Settings(**settings)
    )
    execute(prepared)
    return output


@pytest.mark.parametrize("method", ["dare", "ties"])
def test_a_manifest_depends_on_nothing_but_inputs_and_options(method: str, make_pair: MakePair, tmp_path: Path) -> None:
    pair = make_pair()
    expected = fuse(pair, tmp_path / "out", method)
    moved = tmp_path / "home" / "someone"
    moved.mkdir(parents=True)
    copies = tuple(Path(shutil.copytree(folder, moved / folder.name)) for folder in pair)
    runs: dict[str, tuple[tuple[Path, Path], dict[str, Any]]] = {
        "small tiles": (pair, {"tile_elements": 4096}),
        "odd tiles": (pair, {"tile_elements": 12345}),
        "little memory": (pair, {"memory": 1_000_000}),
        "many threads": (pair, {"threads": 5}),
        "torch": (pair, {"device": "cpu"}),
        "elsewhere": (copies, {}),
    }
    for name, (inputs, settings) in runs.items():
        other = fuse(inputs, tmp_path / name / "out", method, **settings)
        assert (other / MANIFEST).read_text() == (expected / MANIFEST).read_text(), name
    assert "someone" not in (expected / MANIFEST).read_text() + (expected / "README.md").read_text()
    assert str(tmp_path) not in (expected / MANIFEST).read_text()


def test_thedigest_of_a_tensor_is_that_of_its_bytes_in_the_file(make_pair: MakePair, tmp_path: Path) -> None:
    output = fuse(make_pair(), tmp_path / "out", tile_elements=4096)
    recorded = {record.name: record.digest for record in Manifest.read(output).tensors}
    found = {}
    for file in output.glob("*.safetensors"):
        content = file.read_bytes()
        tensors, offsets, _ = read_header(file)
        for name, info in tensors.items():
            piece = content[offsets[name] : offsets[name] + info.nbytes]
            found[name] = f"xxh3-128:{xxhash.xxh3_128_hexdigest(piece)}"
        with safe_open(file, "np") as opened:  # where the library says that they lie
            assert set(opened.keys()) == set(tensors)
    assert recorded == found


def _change(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


def _add_shard(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(2, np.float32)}, folder / "model-00003-of-00003.safetensors")


TAMPERED: dict[str, Callable[[Path], object]] = {
    "code": lambda folder: (folder / "evil.py").write_text("print()"),
    "code in a folder": lambda folder: [(folder / "sub").mkdir(), (folder / "sub" / "evil.py").write_text("print()")],
    "hidden code": lambda folder: (folder / ".evil.py").write_text("print()"),
    "a config": lambda folder: _change(folder / "config.json", auto_map={"AutoModel": "evil.Evil"}),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "a tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "other weights": lambda folder: (folder / "pytorch_model.bin").write_bytes(b"PK"),
    "a shard": _add_shard,
    "an adapter": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "the index": lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
    "a link": lambda folder: (folder / "notes.txt").symlink_to("/etc/passwd"),
    "a dangling link": lambda folder: (folder / "notes.txt").symlink_to("nowhere"),
    "options": lambda folder: _change(folder / MANIFEST, options={"sparsity": 0.1}),
    "the command": lambda folder: _change(folder / MANIFEST, command="sculpt fuse other other"),
    "inputs": lambda folder: _change(folder / MANIFEST, inputs=[]),
    "the format": lambda folder: _change(folder / MANIFEST, format=99),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_tampered_with_is_named(what: str, make_pair: MakePair, tmp_path: Path) -> None:
    output = fuse(make_pair(), tmp_path / "out")
    verify(output)
    TAMPERED[what](output)
    with pytest.raises(CheckpointError, match=f"`{tmp_path}/out"):
        verify(output)


def test_what_is_said_of_very_many_tensors_stands_beside_and_is_covered(
    make_pair: MakePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_pair()
    inline = fuse(pair, tmp_path / "inline")
    monkeypatch.setattr("sculpt.fusion.record.manifest.MANY", 1)
    output, again = fuse(pair, tmp_path / "out"), fuse(pair, tmp_path / "again")
    assert Manifest.read(output).tensors == Manifest.read(inline).tensors
    assert (output / TENSORS).read_bytes() == (again / TENSORS).read_bytes()
    verify(output)
    assert TENSORS in attest(output)[0].read_text()
    assert all(found.name.name != TENSORS for found in sculpt.open_checkpoint(output).beside())

    *lines, last = gzip.decompress((output / TENSORS).read_bytes()).splitlines(keepends=True)
    (output / TENSORS).write_bytes(gzip.compress(b"".join([*lines, last.replace(b"copy", b"fuse")][:-1])))
    with pytest.raises(CheckpointError, match="was changed"):
        verify(output)
    (output / TENSORS).write_bytes(b"no archive")
    with pytest.raises(CheckpointError, match=f"cannot read `.*{TENSORS}`"):
        verify(output)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", ""])
def test_a_manifest_names_no_file_outside_its_folder(name: str, make_pair: MakePair, tmp_path: Path) -> None:
    from sculpt.fusion.record.manifest import digest_of

    output = fuse(make_pair(), tmp_path / "out")
    content = json.loads((output / MANIFEST).read_text())
    content["companions"][0]["name"] = name  # by somebody who can compute the digest again
    del content["digest"]
    content["digest"] = digest_of(content)
    (output / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"malformed: `companions\.0"):
        verify(output)


def test_what_the_hub_adds_is_no_tampering(make_pair: MakePair, tmp_path: Path) -> None:
    output = fuse(make_pair(), tmp_path / "out")
    for name in (".gitattributes", ".cache/huggingface/download/config.json.metadata", ".git/HEAD"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("")
    verify(output)
