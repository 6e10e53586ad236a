"""Patches that are small and claim, or hold compressed, what no memory has: refused by the name of what does."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
from sculpt.fusion.errors import SculptError
from sculpt.fusion.patch.apply import unpack
from sculpt.fusion.patch.contents import most_held
from sculpt.fusion.patch.pack import pack
from sculpt.fusion.patch.source import PatchedSource
from sculpt.fusion.ref import with_patches
from sculpt.fusion.run.fuse import execute
from sculpt.fusion.run.prepared import prepare
from sculpt.fusion.run.settings import Settings

from . import readers
from .readers import PatchParts

SHARD, NORM = "model.safetensors", "model.norm.weight"
SWOLLEN = 40_000_000  # bytes, of which zlib makes a thousandth


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> readers.Home:
    return readers.Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def packed(home: readers.Home) -> bytes:
    pack(home.base, home.sft, output=home.folder / "p.safetensors")
    return (home.folder / "p.safetensors").read_bytes()


def _huge(patch: PatchParts) -> bytes:
    patch.contents["tensors"][NORM]["shape"] = [1 << 50]
    return patch.joined()


def _text(patch: PatchParts) -> bytes:
    return patch.with_text(b"[" + b"[]," * (SWOLLEN // 3) + b"[]]")


def _header(patch: PatchParts) -> bytes:
    header = readers.with_header(b"{" + b" " * SWOLLEN + b"}")
    patch.parts[f"header/{SHARD}"] = zlib.compress(header)
    patch.contents["shards"][SHARD] |= {"nbytes": len(header), "digest": xxhash.xxh3_128_hexdigest(header)}
    return patch.joined()


def _endless(name: str) -> Callable[[PatchParts], bytes]:
    """Return what has an entry go on behind the bytes that it is said to have."""

    def forge(patch: PatchParts) -> bytes:
        patch.parts[name] = zlib.compress(zlib.decompress(patch.parts[name]) + b" " * SWOLLEN)
        return patch.joined()

    return forge


@pytest.mark.parametrize(
    ("forge", "sentence"),
    [
        (_huge, rf"`{NORM}` in `.*p.safetensors` is damaged: its directory is cut off"),
        (_text, r"`contents` in .* is damaged: it claims 4\d{7} bytes, and a patch of this size holds"),
        (_header, rf"`{SHARD}` in .* is damaged: it claims 4\d{{7}} bytes, and a patch of this size holds"),
        (_endless(f"header/{SHARD}"), rf"`{SHARD}` in .* is damaged: it holds more than \d+ bytes"),
        (_endless("file/config.json"), r"`config.json` in .* is damaged: it holds more than \d+ bytes"),
    ],
    ids=["a huge tensor", "contents", "a header", "an endless header", "an endless file"],
)
def test_a_bomb_is_refused_by_name_within_a_few_megabytes(
    forge: Callable[[PatchParts], bytes], sentence: str, home: readers.Home, packed: bytes, tmp_path: Path
) -> None:
    file, out = tmp_path / "p.safetensors", tmp_path / "out"
    patch = PatchParts.of(packed)
    config = (home.sft / "config.json").read_bytes()  # the base's own, which a forger puts in
    patch.parts["file/config.json"] = zlib.compress(config)
    patch.contents["files"]["config.json"]["stored"] = True
    file.write_bytes(forge(patch))
    assert file.stat().st_size < SWOLLEN // 100
    tracemalloc.start()
    try:
        with pytest.raises(SculptError, match=sentence):
            unpack(with_patches(home.base, [file]), output=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most_held(0) // 2
    assert not [path for path in tmp_path.iterdir() if path != file]


def test_a_curvature_that_inflates_is_refused_by_name(home: readers.Home, tmp_path: Path) -> None:
    file, settings = tmp_path / "p.safetensors", Settings(emit="patch")
    method = readers.METHODS["adadare"](sparsity=0.5)
    execute(prepare(home.base, [home.sft], output=file, method=method, settings=settings))
    patch = PatchParts.of(file.read_bytes())
    (name,) = {name for name in patch.parts if name.startswith("root/")}
    patch.parts[name] = (SWOLLEN).to_bytes(8, "little") + zlib.compress(b"\0" * SWOLLEN)
    file.write_bytes(patch.joined())
    opened = PatchedSource(with_patches(home.base, [file]))
    with pytest.raises(SculptError, match=rf"`{name}` in .* is damaged: it claims {SWOLLEN} bytes"):
        _ = [opened.read(tensor) for tensor in opened.tensors]
