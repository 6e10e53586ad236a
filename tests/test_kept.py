"""A base's statistics on the general set, kept for its next fine-tune."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import sculpt
import torch
from sculpt.fusion.cache import default_cache, keep_within
from sculpt.hessian import session
from sculpt.hessian.kept import FORGOTTEN_SECONDS

from .evaluate.conftest import Pair, llama, save

OPTIONS = {"protect": "default", "protect_samples": 4, "protect_kinds": ("csv",), "max_length": 32, "device": "cpu"}


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pair:
    monkeypatch.setenv("SCULPT_CACHE", str(tmp_path / "cache"))
    model = llama(0)
    base = save(model, tmp_path / "base")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight += 0.1
    return Pair(base=base, tuned=save(model, tmp_path / "tuned"))


def fused(pair: Pair, output: Path, **options: object) -> tuple[bytes, object]:
    calibration = sculpt.Calibration(**{**OPTIONS, "protect_check": False, **options})
    sculpt.fuse(pair.base, pair.tuned, output=output, calibration=calibration, protection=sculpt.Protection())
    manifest = json.loads((output / "sculpt-manifest.json").read_text())
    return (output / "model.safetensors").read_bytes(), manifest["curvature"]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Whatever is measured from now on."""
    found: list[object] = []
    whole = session.Session.blocks

    def blocks(self: session.Session, **given: bool) -> object:
        found.append(self)
        return whole(self, **given)

    monkeypatch.setattr(session.Session, "blocks", blocks)
    return found


def kept() -> list[Path]:
    return sorted((default_cache() / "general").iterdir())


def test_a_second_fuse_of_a_base_measures_nothing_and_gives_the_same_bytes(
    pair: Pair, tmp_path: Path, runs: list[object]
) -> None:
    first = fused(pair, tmp_path / "first")
    assert len(runs) == len(kept()) == 1
    assert fused(pair, tmp_path / "second") == first
    assert len(runs) == 1
    assert fused(pair, tmp_path / "apart", protect_keep=False) == first
    assert len(runs) == 2
    fused(pair, tmp_path / "other", seed=1)
    assert len(runs) == 3
    assert len(kept()) == 2


def test_statistics_of_other_weights_or_torn_ones_are_not_used(
    pair: Pair, tmp_path: Path, runs: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    fused(pair, tmp_path / "first")
    (file,) = kept()
    file.write_bytes(file.read_bytes()[:1000])
    fused(pair, tmp_path / "second")
    assert "is not used" in caplog.text
    save(llama(1), pair.base)
    fused(pair, tmp_path / "third")
    assert len(runs) == 3


def test_a_fuse_goes_on_where_the_cache_cannot_be_written(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = fused(pair, tmp_path / "first")
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCULPT_CACHE", str(tmp_path / "file"))
    assert fused(pair, tmp_path / "second") == first
    assert "are not kept for later runs" in caplog.text


def test_what_was_longest_not_used_goes_first(pair: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for age, name in enumerate("cba"):
        (folder / name).write_bytes(bytes(10))
        os.utime(folder / name, (age, age))
    keep_within(folder, 20)
    assert sorted(file.name for file in folder.iterdir()) == ["a", "b"]
    fused(pair, tmp_path / "first")
    left = default_cache() / "general" / "killed.safetensors.partial"
    left.mkdir()
    (left / "sculpt-unfinished.json").write_text("{}")
    for file in (left, left / "sculpt-unfinished.json"):
        os.utime(file, (1, file.stat().st_mtime - FORGOTTEN_SECONDS - 1))
    fused(pair, tmp_path / "other", seed=1)
    assert not left.exists()
