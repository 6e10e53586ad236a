"""Models in object stores and behind web servers are copied into a local cache; the servers speak the protocols."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sculpt.fusion import ref
from sculpt.fusion.checkpoint import find_model, open_checkpoint
from sculpt.fusion.errors import CheckpointError, SculptError
from sculpt.fusion.places import store
from sculpt.fusion.places.names import url_of, without_secrets

from ...commands import run
from .file_server import FileServer

Pair = Callable[..., tuple[Path, Path]]


def refused(asked: str) -> tuple[str, str]:
    with pytest.raises(SculptError) as caught:
        find_model(asked)
    return caught.value.message, caught.value.hint or ""


def test_a_bucket_makes_the_bytes_that_its_folders_make(
    s3: Any, make_pair: Pair, here: Path, places: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, tuned = make_pair()
    for folder in (base, tuned):
        (folder / "model.gguf").write_bytes(b"0" * 3000)
        s3.put(str(folder), f"bucket/models/{folder.name}", recursive=True)
    with caplog.at_level(logging.INFO):
        run("dare", Path("s3://bucket/models/base"), "s3://bucket/models/sft/", "-o", "copied")
    assert "s3://bucket/models/base: copying" in caplog.text
    assert not list(places.rglob("*.gguf"))
    run("dare", base, tuned, "-o", "local")
    for file in Path("local").glob("model*"):
        assert file.read_bytes() == (Path("copied") / file.name).read_bytes()
    inputs = json.loads(Path("copied/sculpt-manifest.json").read_text())["inputs"]
    assert [one["name"] for one in inputs] == ["s3://bucket/models/base", "s3://bucket/models/sft"]
    assert all(one["version"].startswith("sha256:") for one in inputs)
    ref.FOUND.clear()
    caplog.clear()
    run("verify", "copied", "--input", "s3://bucket/models/base")
    assert "copying" not in caplog.text  # the state is that of the copy


def test_a_file_in_a_bucket_is_a_model_by_its_etag(s3: Any, make_pair: Pair) -> None:
    base, _ = make_pair(shards=1)
    s3.put(str(base / "model.safetensors"), "bucket/one.safetensors")
    found = find_model("s3://bucket/one.safetensors")
    assert found.version == s3.info("bucket/one.safetensors")["ETag"].strip('"')
    assert open_checkpoint(found).files[0].read_bytes() == (base / "model.safetensors").read_bytes()
    assert found.beside("-dare") == Path("one-dare").absolute()


def test_an_output_of_another_state_is_another_copy(s3: Any, make_pair: Pair) -> None:
    base, tuned = make_pair(shards=1)
    s3.put(str(base / "model.safetensors"), "bucket/one.safetensors")
    first = find_model("s3://bucket/one.safetensors")
    s3.put(str(tuned / "model.safetensors"), "bucket/one.safetensors")
    assert find_model("s3://bucket/one.safetensors") is first  # one run reads one state
    ref.FOUND.clear()
    second = find_model("s3://bucket/one.safetensors")
    assert second.path.read_bytes() == (tuned / "model.safetensors").read_bytes()
    assert first.path.read_bytes() == (base / "model.safetensors").read_bytes()


def test_what_a_store_refuses_is_one_sentence(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused("s3://bucket/nothing")[0] == "`s3://bucket/nothing` does not exist"
    assert refused("s3://no-such-bucket/nothing")[0] == "`s3://no-such-bucket/nothing` does not exist"
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setitem(sys.modules, "adlfs", None)
    assert refused("gs://bucket/model") == (
        "`gs://bucket/model` needs `gcsfs`, which is not installed",
        "`pip install 'checkpoint-sculpt[gs]'`",
    )
    assert "checkpoint-sculpt[az]" in refused("az://container/model")[1]


def test_a_folder_behind_a_web_server_is_found_by_its_index(web: FileServer, make_pair: Pair, here: Path) -> None:
    base, _ = make_pair()
    (base / "tokenizer.json").write_text("{}")
    opened = open_checkpoint(f"{web.url}/base")
    assert {file.name: file.read_bytes() for file in opened.path.iterdir()} == {
        file.name: file.read_bytes() for file in base.iterdir()
    }
    assert refused(f"{web.url}/nothing")[0] == f"`{web.url}/nothing` does not exist"


@pytest.mark.parametrize("index", ["{}", "[]", "<html>", '{"weight_map": ["model.safetensors"]}'])
def test_an_index_behind_a_web_server_that_is_none_is_told_by_its_url(
    index: str, web: FileServer, make_pair: Pair
) -> None:
    base, _ = make_pair()
    (base / "model.safetensors.index.json").write_text(index)
    told = f"`{web.url}/base/model.safetensors.index.json` has no `weight_map`"
    assert refused(f"{web.url}/base")[0] == told


def test_errors_and_cut_lines_of_a_server_are_asked_again(web: FileServer, make_pair: Pair) -> None:
    base, _ = make_pair(shards=1)
    web.faults = {"GET .*model.safetensors": [500, 503, -1, 429]}
    opened = find_model(f"{web.url}/base/model.safetensors")
    assert opened.path.read_bytes() == (base / "model.safetensors").read_bytes()
    assert not web.faults["GET .*model.safetensors"]


def test_a_server_that_keeps_failing_is_told(web: FileServer, make_pair: Pair) -> None:
    make_pair(shards=1)
    web.faults = {"model.safetensors": [503] * 50}
    assert "fails, by status 503" in refused(f"{web.url}/base/model.safetensors")[0]


def test_a_server_without_ranges_gives_the_same_bytes(
    web: FileServer, make_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _ = make_pair(shards=1)
    monkeypatch.setattr(store, "CHUNK", 10_000)
    web.ranges = False
    found = find_model(f"{web.url}/base/model.safetensors")
    assert found.path.read_bytes() == (base / "model.safetensors").read_bytes()


def test_a_copy_goes_on_where_it_was_cut_off(web: FileServer, make_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _ = make_pair(shards=1)
    size = (base / "model.safetensors").stat().st_size
    monkeypatch.setattr(store, "CHUNK", 10_000)
    web.faults = {"GET .*model.safetensors": [0.0, 0.0, *[404] * 5]}
    refused(f"{web.url}/base/model.safetensors")
    web.faults.clear()
    before = web.bytes_of("model.safetensors")
    found = find_model(f"{web.url}/base/model.safetensors")
    assert found.path.read_bytes() == (base / "model.safetensors").read_bytes()
    assert web.bytes_of("model.safetensors") - before == size - 20_000


def test_a_file_that_changes_while_it_is_copied_is_refused(
    web: FileServer, make_pair: Pair, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = make_pair(shards=1)
    read = store.read_range

    def changed(*words: Any) -> bytes:
        found = read(*words)
        (base / "model.safetensors").write_bytes((tuned / "model.safetensors").read_bytes())
        return found

    monkeypatch.setattr(store, "read_range", changed)
    assert "changed while it was read" in refused(f"{web.url}/base/model.safetensors")[0]
    assert not list(places.rglob("*.safetensors*"))


def test_a_password_in_a_url_is_used_and_shown_nowhere(
    web: FileServer, make_pair: Pair, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pair(shards=1)
    web.user = "me:hush"
    place = web.url.replace("//", "//me:hush@")
    words = ["dare", f"{place}/base/model.safetensors", f"{place}/sft/model.safetensors?key=hush", "-o", "out"]
    monkeypatch.setattr("sys.argv", ["sculpt", *words])
    said = run(*words)
    assert "hush" not in said
    assert not [file.name for file in Path("out").iterdir() if b"hush" in file.read_bytes()]
    assert "may not be read" in refused(f"{web.url}/base/other.safetensors")[0]


def test_a_password_in_a_url_is_not_told_where_something_goes_wrong(
    web: FileServer, make_pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base, _ = make_pair(shards=1)
    sharded, _ = make_pair(name="sharded-")
    web.user = "me:hush"
    place, file = web.url.replace("//", "//me:hush@"), base / "model.safetensors"
    (sharded / "model.safetensors.index.json").write_text("{}")
    web.faults = {"GET .*model.safetensors": [500, 503]}
    read = store.read_range

    def changed(*words: Any) -> bytes:
        found = read(*words)
        file.write_bytes(file.read_bytes()[:-1] + b"?")
        return found

    with caplog.at_level("DEBUG", "sculpt"):
        told = [*refused(f"{place}/sharded-base"), *refused(f"{web.url.replace('//', '//me:hush2@')}/base?key=hush")]
        monkeypatch.setattr(store, "read_range", changed)
        told += refused(f"{place}/base/model.safetensors")
    assert "asked again" in caplog.text
    assert "changed while it was read" in "".join(map(str, told))
    assert "hush" not in caplog.text + "".join(map(str, told))


def test_a_url_of_this_disk_is_a_path(make_pair: Pair, places: Path) -> None:
    base, _ = make_pair()
    found = find_model(base.as_uri())
    assert (found.path, found.url) == (base, False)
    assert find_model(Path(base.as_uri())).path == base
    assert not places.exists()


@pytest.mark.parametrize("text", ["base/", "org/model@v1", "C:/models", "s3:", "hf://org/model", "ftp://host/model"])
def test_other_names_are_no_urls(text: str) -> None:
    assert url_of(text) is None


def test_nothing_is_fetched_for_a_url_that_is_only_looked_at(web: FileServer) -> None:
    with pytest.raises(CheckpointError):
        find_model(f"{web.url}/base", fetch=False)
    assert web.requests == []


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("500, url='http://me:hush@host/a?key=hush#x'", "500, url='http://host/a'"),
        ("401 (https://me:hush@host/a b)", "401 (https://host/a b)"),
        ("http://[::1", "http://[::1"),
    ],
)
def test_what_a_library_says_of_a_url_is_told_without_its_secrets(said: str, told: str) -> None:
    assert without_secrets(said) == told
