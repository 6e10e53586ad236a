"""Outputs are uploaded: to the hub in one commit, to a store with what names the weights last; never without a yes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sculpt
from safetensors.numpy import save_file
from sculpt.fusion.digests import digest_of_file
from sculpt.fusion.errors import OutputError, SculptError
from sculpt.fusion.places import push as pushing

from ...commands import invoke, run
from .local_hub import LocalHub

Pair = Callable[..., tuple[Path, Path]]
# Of huggingface_hub, which sends bytes as httpx2 would rather not have them.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def refused(*words: object) -> tuple[str, str]:
    result = invoke(*words)
    assert isinstance(result.exception, SculptError), result.output
    ways = [f"`{way.option}` {way.effect}" for way in result.exception.ways]
    return result.exception.message, "; ".join([result.exception.hint or "", *ways])


def files_of(folder: str) -> dict[str, bytes]:
    root = Path(folder)
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def commits(hub: LocalHub) -> list[str]:
    return [path for method, path, _ in hub.requests if method == "POST" and "/commit/" in path]


def uploads(hub: LocalHub) -> list[str]:
    return [path for method, path, _ in hub.requests if method == "PUT"]


def test_an_output_comes_to_the_hub_in_one_commit_and_private(
    hub: LocalHub, make_pair: Pair, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = make_pair()
    words = ["dare", str(base), str(tuned), "-o", "out", "--push", "org/fused", "--yes"]
    monkeypatch.setattr("sys.argv", ["sculpt", *words])
    run(*words)
    found = hub.files("org/fused")
    assert {name: data for name, data in found.items() if name != ".gitattributes"} == files_of("out")
    assert hub.repositories["org/fused"].private
    assert len(commits(hub)) == 1
    assert json.loads(found["sculpt-manifest.json"])["command"] == "sculpt dare base sft"
    # All weights are there before anybody can see one.
    order = [path for _, path, _ in hub.requests if "/upload/" in path or "/commit/" in path]
    assert "/commit/" in order[-1]
    assert len(order) >= 3


def test_shards_go_while_others_are_being_made(
    hub: LocalHub, make_pair: Pair, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, tuned = make_pair()
    with caplog.at_level(logging.INFO):
        run("dare", base, tuned, "-o", "out", "--push", "org/fused", "--yes")
    uploaded = [record.getMessage() for record in caplog.records if record.getMessage().endswith("is uploaded")]
    assert sorted(uploaded) == [f"model-0000{k}-of-00002.safetensors is uploaded" for k in (1, 2)]
    assert len(uploads(hub)) == len(set(uploads(hub)))


def test_a_shard_that_goes_to_its_place_meanwhile_is_uploaded_from_there(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made, later = tmp_path / "workspace.safetensors", tmp_path / "out" / "model.safetensors"
    made.write_bytes(b"0" * 3000)
    later.parent.mkdir()

    def and_moved(file: Path) -> str:
        found = digest_of_file(file)
        if file == made:
            made.rename(later)
        return found

    monkeypatch.setattr(pushing, "digest_of_file", and_moved)
    upload = pushing.upload_to("org/fused")
    upload.check(overwrite=False)
    with caplog.at_level(logging.INFO):
        upload.begin(later.name, made, later)
        wait(upload._begun.values())  # as the workspace has its name by then
        upload.finish(later.parent)
    upload.close()
    assert "model.safetensors is uploaded\n" in caplog.text
    assert "again" not in caplog.text
    assert hub.files("org/fused")["model.safetensors"] == b"0" * 3000


def test_nothing_is_uploaded_or_made_without_a_yes(hub: LocalHub, make_pair: Pair, here: Path) -> None:
    base, tuned = make_pair()
    message, hint = refused("dare", base, tuned, "-o", "out", "--push", "org/fused")
    assert message == "nobody is there to be asked whether the output may be uploaded to `org/fused`, private"
    assert "`--yes` says that it may" in hint
    assert not Path("out").exists()
    assert "org/fused" not in hub.repositories
    assert [method for method, _, _ in hub.requests if method != "GET"] == []


@pytest.mark.parametrize(("answer", "is_made"), [("y\n", True), ("n\n", False)])
def test_somebody_at_a_terminal_is_asked(
    hub: LocalHub, make_pair: Pair, here: Path, monkeypatch: pytest.MonkeyPatch, answer: str, is_made: bool
) -> None:
    base, tuned = make_pair()
    monkeypatch.setattr(
        "sculpt.cli.push.sys", type("Terminal", (), {"stdin": type("In", (), {"isatty": lambda: True})})
    )
    result = invoke("dare", base, tuned, "-o", "out", "--push", "org/fused", "--public", answer=answer)
    assert "Upload the output to org/fused, for everybody? [y/N]" in result.output
    assert ("org/fused" in hub.repositories) == Path("out").exists() == is_made
    assert not is_made or not hub.repositories["org/fused"].private


def test_a_model_that_lies_there_is_not_replaced_unless_it_is_said(hub: LocalHub, make_pair: Pair, here: Path) -> None:
    base, tuned = make_pair()
    hub.put("org/fused", {"pytorch_model.bin": b"0" * 3000, "README.md": b"mine", "notes.txt": b"mine"})
    message, hint = refused("dare", base, tuned, "-o", "out", "--push", "org/fused", "--yes")
    assert message == "`org/fused` is on the hub, and holds `pytorch_model.bin`"
    assert "`overwrite` replaces it" in hint
    assert not Path("out").exists()
    run("dare", base, tuned, "-o", "out", "--push", "org/fused", "--yes", "--overwrite")
    found = hub.files("org/fused")
    assert "pytorch_model.bin" not in found  # or loaders would find two models
    assert found["notes.txt"] == b"mine"
    assert found["README.md"] == Path("out/README.md").read_bytes()


def test_an_upload_that_failed_goes_on_without_what_is_there(hub: LocalHub, make_pair: Pair, here: Path) -> None:
    base, tuned = make_pair()
    run("dare", base, tuned, "-o", "out")
    hub.faults = {"POST .*/commit/": [500] * 20}
    assert "cannot upload to `org/fused`" in refused("push", "out", "org/fused", "--yes")[0]
    assert set(hub.files("org/fused")) == {".gitattributes"}  # nothing is half there
    hub.faults.clear()
    before = len(uploads(hub))
    run("push", "out", "org/fused", "--yes")
    assert len(uploads(hub)) == before
    assert files_of("out").items() <= hub.files("org/fused").items()


def test_a_bucket_gets_what_names_the_weights_last(
    s3: Any, make_pair: Pair, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = make_pair()
    order: list[str] = []
    put = type(s3)._put_file

    async def noted(self: Any, file: str, place: str, **options: Any) -> Any:
        order.append(place.rpartition("/")[2])
        return await put(self, file, place, **options)

    monkeypatch.setattr(type(s3), "_put_file", noted)
    type(s3).clear_instance_cache()
    run("dare", base, tuned, "-o", "out", "--push", "s3://bucket/fused", "--yes")
    order = list(dict.fromkeys(order))  # a shard that goes to its last place while it is read is sent again
    assert sorted(order[:2]) == [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    assert order[-3:] == ["model.safetensors.index.json", "config.json", "sculpt-manifest.json"]
    assert {name: s3.cat_file(f"bucket/fused/{name}") for name in order} == files_of("out")


def test_an_output_may_be_named_in_a_bucket(s3: Any, make_pair: Pair, here: Path, places: Path) -> None:
    base, tuned = make_pair()
    run("dare", base, tuned, "-o", "s3://bucket/deep/fused", "--yes")
    run("dare", base, tuned, "-o", "out")
    names = {Path(place).name for place in s3.find("bucket/deep/fused")}
    assert names == set(files_of("out"))
    assert (
        s3.cat_file("bucket/deep/fused/model-00001-of-00002.safetensors")
        == files_of("out")["model-00001-of-00002.safetensors"]
    )
    assert not [file for file in places.rglob("*") if file.is_file()]
    assert list(here.iterdir()) == [here / "out"]
    assert "holds `" in refused("dare", base, tuned, "-o", "s3://bucket/deep/fused", "--yes")[0]


def test_an_upload_to_a_bucket_goes_on_without_what_is_there(
    s3: Any, make_pair: Pair, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = make_pair()
    run("dare", base, tuned, "-o", "out")
    order: list[str] = []
    put = type(s3)._put_file

    async def noted(self: Any, file: str, place: str, **options: Any) -> Any:
        order.append(place.rpartition("/")[2])
        if len(order) == 2:
            raise PermissionError("the line is cut")
        return await put(self, file, place, **options)

    monkeypatch.setattr(type(s3), "_put_file", noted)
    type(s3).clear_instance_cache()
    refused("push", "out", "s3://bucket/fused", "--yes")
    first = order[0]
    run("push", "out", "s3://bucket/fused", "--yes")
    assert order.count(first) == 1
    assert {name: s3.cat_file(f"bucket/fused/{name}") for name in files_of("out")} == files_of("out")


def test_what_another_put_there_is_not_taken_for_ones_own(s3: Any, make_pair: Pair, here: Path) -> None:
    base, tuned = make_pair()
    run("dare", base, tuned, "-o", "out")
    s3.pipe("bucket/fused/config.json", b"{}")
    assert refused("push", "out", "s3://bucket/fused", "--yes")[0] == "`s3://bucket/fused` holds `config.json`"
    run("push", "out", "s3://bucket/fused", "--yes", "--overwrite")
    assert s3.cat_file("bucket/fused/config.json") == files_of("out")["config.json"]


def test_a_shard_that_was_sent_too_early_is_sent_again(s3: Any, tmp_path: Path) -> None:
    file = tmp_path / "out" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"half")
    upload = pushing.upload_to("s3://bucket/fused")
    upload.check(overwrite=False)
    upload.begin(file.name, file, file)
    assert upload._begun[file.name].result()
    file.write_bytes(b"half and whole")
    upload.finish(file.parent)
    upload.close()
    s3.invalidate_cache()
    assert s3.cat_file("bucket/fused/model.safetensors") == b"half and whole"


@pytest.mark.parametrize("place", ["fused", "org/model@v1", "https://host/model", "a/b/c"])
def test_other_places_are_refused_before_the_work(make_pair: Pair, here: Path, place: str) -> None:
    base, tuned = make_pair()
    assert refused("dare", base, tuned, "-o", "out", "--push", place, "--yes")[0] == f"`{place}` is no place to push to"
    assert not Path("out").exists()


def test_a_plan_uploads_nothing(hub: LocalHub, make_pair: Pair, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sculpt.api.check_output", lambda *_, **__: None)  # which imports torch
    base, tuned = make_pair()
    run("dare", base, tuned, "--dry-run", "--push", "org/fused")
    assert hub.repositories == {}


def test_python_pushes_what_is_private_stays_here(hub: LocalHub, make_pair: Pair, here: Path) -> None:
    base, _ = make_pair()
    (base / ".env").write_text("SECRET=1")
    (base / "hf_token.txt").write_text("hf_x")
    assert "/org/model/commit/" in sculpt.push(base, "org/model")
    assert not {".env", "hf_token.txt"} & set(hub.files("org/model"))
    with pytest.raises(OutputError, match="is no folder"):
        sculpt.push("nowhere", "org/model")


def test_a_file_of_weights_goes_with_its_manifest_and_beside_others(hub: LocalHub, s3: Any, here: Path) -> None:
    for number in (1, 2):
        weights = {"w.weight": np.full((4, 4), number, np.float32)}
        save_file(weights, here / f"{number}.safetensors")
    sides = "1.safetensors", "2.safetensors"
    run("dare", *sides, "-o", "style.safetensors", "--push", "org/styles", "--yes")
    run("dare", *sides, "-o", "other.safetensors", "--seed", "1")
    run("push", "other.safetensors", "org/styles", "--yes", "--overwrite")
    found = hub.files("org/styles")
    for name in ("style", "other"):
        for end in ("safetensors", "sculpt-manifest.json"):
            assert found[f"{name}.{end}"] == (here / f"{name}.{end}").read_bytes()
    sculpt.push("style.safetensors", "s3://bucket/styles")
    run("verify", "style.safetensors")
    assert refused("push", "style.sculpt-manifest.json", "org/styles", "--yes")[0].endswith("no file of weights")
