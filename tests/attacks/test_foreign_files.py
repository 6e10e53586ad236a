"""A folder and a row of data may name any file; only their own are read, and private ones are not published."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from sculpt.data.media import load_image
from sculpt.data.rows import open_rows
from sculpt.fusion.checkpoint import Checkpoint
from sculpt.fusion.checkpoint.companions import look_beside
from sculpt.fusion.errors import CheckpointError, DataError
from sculpt.fusion.methods import Dare
from sculpt.fusion.patch.pack import pack
from sculpt.fusion.run.fuse import execute
from sculpt.fusion.run.patched import apply_patches
from sculpt.fusion.run.prepared import prepare

MakePair = Callable[..., tuple[Path, Path]]
KEPT = ("config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "modeling_own.py", "LICENSE")
LEFT = (
    *(".env", ".cache/huggingface/token", "credentials.json", "id_rsa", "server.pem", "hf_token.txt", "train.log"),
    *("nohup.out", "runs/events.out.tfevents.1", "gcp-credentials.json", "client_secret.json", ".git/config"),
)


def test_hidden_files_credentials_and_logs_stay_behind(make_pair: MakePair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    for name in (*KEPT[1:], *LEFT):
        (tuned / name).parent.mkdir(parents=True, exist_ok=True)
        (tuned / name).write_text("{}")
    out = tmp_path / "out"
    execute(prepare(base, [tuned], output=out, method=Dare(sparsity=0.5, scale=1.0)))
    assert all((out / name).is_file() for name in KEPT)
    assert not [name for name in LEFT if (out / name).exists()]


@pytest.mark.parametrize("target", ["secret.txt", "/etc/passwd"])
def test_a_link_out_of_the_folder_is_refused_before_the_run(target: str, make_pair: MakePair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    (tmp_path / "secret.txt").write_text("precious")
    (tuned / "notes.txt").symlink_to(tmp_path / target)
    with pytest.raises(CheckpointError, match=r"notes\.txt` is a link out of its folder"):
        prepare(base, [tuned], output=tmp_path / "out", method=Dare(sparsity=0.5, scale=1.0))


@pytest.mark.parametrize("name", ["README.md", "notes.txt", "sculpt-manifest.json"])
def test_a_link_out_of_the_folder_goes_into_no_patch(name: str, make_pair: MakePair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    (tmp_path / "secret.txt").write_text("precious")
    (tuned / name).symlink_to(tmp_path / "secret.txt")
    with pytest.raises(CheckpointError, match="is a link out of its folder"):
        pack(base, tuned, output=tmp_path / "p.safetensors")
    assert not list(tmp_path.glob("p.*"))


def test_links_within_the_folder_and_within_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--o--m" / "snapshots" / "abc", tmp_path / "models--o--m" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "0123").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/0123")
    (snapshot / "again.json").symlink_to("config.json")
    assert {found.name for found in look_beside(snapshot, ())} == {Path("config.json"), Path("again.json")}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    Image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "data"
    folder.mkdir()
    for place in (folder / "in.png", tmp_path / "out.png"):
        Image.new("RGB", (2, 2)).save(place)
    (folder / "link.png").symlink_to("../out.png")
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.mark.parametrize(
    "name", ["{tmp}/out.png", "../out.png", "link.png", "/dev/zero", "pipe.png", "a\0b", "x" * 300]
)
def test_a_row_reads_no_file_but_those_of_its_data(name: str, data: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 names the image") as caught:
        load_image(name.format(tmp=data.parent), data, "row 1")
    assert "\n" not in caught.value.message


def test_a_row_reads_what_lies_in_the_folder_that_was_asked_for(data: Path) -> None:
    assert load_image("in.png", data, "row 1").size == (2, 2)
    assert load_image(str(data / "in.png"), data, "row 1").size == (2, 2)
    file = data / "rows.jsonl"
    file.write_text(json.dumps({"image": str(data.parent / "out.png")}) + "\n")
    row = open_rows(file, data.parent).row(0)
    assert load_image(row.get("image"), row.folder, row.what).size == (2, 2)


def test_a_pipe_is_no_patch(make_pair: MakePair, tmp_path: Path) -> None:
    base, _ = make_pair()
    os.mkfifo(tmp_path / "p.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        apply_patches(base, [tmp_path / "p.safetensors"], output=tmp_path / "out")


def test_a_pipe_is_no_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        Checkpoint(tmp_path / "model.safetensors")


def test_a_pipe_is_no_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="not a regular file"):
        open_rows(tmp_path / "rows.jsonl")
