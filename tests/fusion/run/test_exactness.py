"""Bits: which outputs equal an input exactly, and what no output bit may depend on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sculpt
from sculpt.fusion.methods import AdaDare, Dare, Method, TaskArithmetic

Pair = Callable[..., tuple[Path, Path]]
Read = Callable[[Path], dict[str, np.ndarray]]
Same = Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], bool]


def fuse(pair: tuple[Path, Path], output: Path, method: Method, **settings: object) -> sculpt.Manifest:
    return sculpt.fuse(
        pair[0],
        pair[1],
        output=output,
        method=method,
        calibration=False,
        settings=sculpt.Settings(**settings),  # pyright: ignore[reportArgumentType]
    )


BASE_METHODS = [
    AdaDare(gamma=0),
    AdaDare(gamma=0, allocation="exact"),
    AdaDare(sparsity=1),
    Dare(scale=0),
    Dare(sparsity=1),
    TaskArithmetic(scale=0),
]
TUNED_METHODS = [
    AdaDare(gamma=1, sparsity=0),
    AdaDare(gamma=1, sparsity=0, allocation="exact"),
    AdaDare(gamma=1, sparsity=0, scope="model"),
    Dare(sparsity=0, scale=1),
    TaskArithmetic(scale=1),
]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("method", BASE_METHODS, ids=str)
def test_strength_zero_is_the_base_bit_for_bit(
    dtype: str, method: Method, make_pair: Pair, tensors_of: Read, same_bits: Same, tmp_path: Path
) -> None:
    pair = make_pair(dtype)
    fuse(pair, tmp_path / "out", method)
    assert same_bits(tensors_of(tmp_path / "out"), tensors_of(pair[0]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("method", TUNED_METHODS, ids=str)
def test_nothing_dropped_at_strength_one_is_the_fine_tune_bit_for_bit(
    dtype: str, method: Method, make_pair: Pair, tensors_of: Read, same_bits: Same, tmp_path: Path
) -> None:
    pair = make_pair(dtype)
    fuse(pair, tmp_path / "out", method)
    assert same_bits(tensors_of(tmp_path / "out"), tensors_of(pair[1]))


def test_signs_of_zero_survive(make_checkpoint: Callable[..., Path], tensors_of: Read, tmp_path: Path) -> None:
    base = {"w": np.array([0.0, -0.0, 0.0, -0.0, 1.0], np.float32)}
    tuned = {"w": np.array([-0.0, 0.0, 0.0, -0.0, 2.0], np.float32)}
    pair = make_checkpoint("b", base), make_checkpoint("t", tuned)
    fuse(pair, tmp_path / "none", AdaDare(gamma=0))
    assert tensors_of(tmp_path / "none")["w"].tobytes() == base["w"].tobytes()
    fuse(pair, tmp_path / "all", AdaDare(gamma=1, sparsity=0))
    assert tensors_of(tmp_path / "all")["w"].tobytes() == tuned["w"].tobytes()
    fuse(pair, tmp_path / "some", AdaDare(gamma=0.5, sparsity=0.5))
    assert np.signbit(tensors_of(tmp_path / "some")["w"][:4]).tolist() == [False, True, False, True]


RANDOM_METHODS = [AdaDare(), AdaDare(allocation="exact", sparsity=0.6), AdaDare(scope="model"), Dare(sparsity=0.7)]


@pytest.mark.parametrize("method", RANDOM_METHODS, ids=str)
def test_two_runs_give_the_same_files(method: Method, make_pair: Pair, tmp_path: Path) -> None:
    pair = make_pair()
    for name in ("one", "two"):
        fuse(pair, tmp_path / name / "out", method)
    files = sorted(file.name for file in (tmp_path / "one/out").iterdir())
    assert "sculpt-manifest.json" in files
    for file in files:
        assert (tmp_path / "one/out" / file).read_bytes() == (tmp_path / "two/out" / file).read_bytes(), file


@pytest.mark.parametrize("method", RANDOM_METHODS, ids=str)
@pytest.mark.parametrize("settings", [{"tile_elements": 4096}, {"tile_elements": 8192, "threads": 1}, {"threads": 5}])
def test_tiles_and_threads_change_no_byte(
    method: Method, settings: dict[str, int], make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    base = {f"layers.{i}.w": rng.standard_normal((130, 257)).astype(np.float32) for i in range(3)}
    tuned = {name: tensor + rng.standard_t(3, tensor.shape).astype(np.float32) for name, tensor in base.items()}
    pair = make_checkpoint("b", base), make_checkpoint("t", tuned)
    fuse(pair, tmp_path / "plain", method)
    fuse(pair, tmp_path / "other", method, **settings)
    assert (tmp_path / "plain/model.safetensors").read_bytes() == (tmp_path / "other/model.safetensors").read_bytes()


@pytest.mark.parametrize("method", RANDOM_METHODS, ids=str)
def test_shards_and_order_change_no_bit(
    method: Method,
    make_pair: Pair,
    make_checkpoint: Callable[..., Path],
    tensors_of: Read,
    same_bits: Same,
    tmp_path: Path,
) -> None:
    pair = make_pair()
    fuse(pair, tmp_path / "plain", method)
    plain = tensors_of(tmp_path / "plain")
    fuse(pair, tmp_path / "small", method, max_shard_bytes=6000)
    assert len(list((tmp_path / "small").glob("*.safetensors"))) > 3
    assert same_bits(tensors_of(tmp_path / "small"), plain)
    # The same tensors under another split, so that every file holds them in another order.
    config = json.loads((pair[0] / "config.json").read_text())
    turned = [
        make_checkpoint(f"turned-{i}", dict(reversed(tensors_of(path).items())), config=config, shards=3)
        for i, path in enumerate(pair)
    ]
    fuse((turned[0], turned[1]), tmp_path / "turned", method)
    assert same_bits(tensors_of(tmp_path / "turned"), plain)


@pytest.mark.parametrize("method", [AdaDare(), Dare()], ids=str)
def test_editing_one_tensor_changes_only_that_tensor(
    method: Method, make_pair: Pair, make_checkpoint: Callable[..., Path], tensors_of: Read, tmp_path: Path
) -> None:
    pair = make_pair()
    edited = tensors_of(pair[1])
    name = "model.layers.1.mlp.up_proj.weight"
    edited[name] = (edited[name].astype(np.float32) * 1.5).astype(edited[name].dtype)
    config = json.loads((pair[0] / "config.json").read_text())
    fuse(pair, tmp_path / "before", method)
    fuse((pair[0], make_checkpoint("edited", edited, config=config)), tmp_path / "after", method)
    before, after = tensors_of(tmp_path / "before"), tensors_of(tmp_path / "after")
    assert [key for key in before if before[key].tobytes() != after[key].tobytes()] == [name]


def test_another_seed_gives_another_mask(make_pair: Pair, tensors_of: Read, tmp_path: Path) -> None:
    pair = make_pair()
    for seed in (0, 1):
        fuse(pair, tmp_path / str(seed), Dare(), seed=seed)
    first, second = tensors_of(tmp_path / "0"), tensors_of(tmp_path / "1")
    assert all(first[name].tobytes() != second[name].tobytes() for name in first if first[name].size > 100)


def test_the_mask_does_not_depend_on_the_dtype(
    make_checkpoint: Callable[..., Path], tensors_of: Read, tmp_path: Path
) -> None:
    kept = {}
    for dtype in (np.float16, np.float32, np.float64):
        base = {"w": np.zeros(5000, dtype)}
        tuned = {"w": np.ones(5000, dtype)}
        pair = make_checkpoint(f"b{dtype.__name__}", base), make_checkpoint(f"t{dtype.__name__}", tuned)
        fuse(pair, tmp_path / dtype.__name__, Dare(sparsity=0.999))
        kept[dtype] = np.flatnonzero(tensors_of(tmp_path / dtype.__name__)["w"])
    assert 0 < len(kept[np.float16]) < 20
    assert np.array_equal(kept[np.float16], kept[np.float32])
    assert np.array_equal(kept[np.float64], kept[np.float32])


def test_manifest_figures_agree_with_the_tensors(make_pair: Pair, tensors_of: Read, tmp_path: Path) -> None:
    pair = make_pair("float32")
    manifest = fuse(pair, tmp_path / "out", AdaDare(sparsity=0.7))
    base, tuned, out = tensors_of(pair[0]), tensors_of(pair[1]), tensors_of(tmp_path / "out")
    assert len(manifest.fused) == len(base)
    for record in manifest.fused:
        a, b, c = (side[record.name].astype(np.float64) for side in (base, tuned, out))
        delta = (tuned[record.name] - base[record.name]).astype(np.float64)
        assert record.zero_deltas == (b == a).sum()
        assert record.kept == (c != a).sum()
        assert record.delta_l1 == pytest.approx(np.abs(delta).sum(), rel=1e-12)
        assert record.distance_l1 == pytest.approx(np.abs(c - a).sum(), rel=1e-6)  # of float32 differences
        assert record.distance_l2 == pytest.approx(np.linalg.norm(c - a), rel=1e-6)


def test_an_option_that_is_recorded_is_the_one_that_ran(make_pair: Pair, tmp_path: Path) -> None:
    method = AdaDare(gamma=0.7, sparsity=0.8, allocation="exact")
    manifest = fuse(make_pair(), tmp_path / "out", method, seed=11)
    assert AdaDare(**manifest.options) == method
    assert json.loads(json.dumps(replace(sculpt.Settings(), seed=11).recorded())) == manifest.settings
    read_back = sculpt.Manifest.read(tmp_path / "out")
    assert json.dumps(read_back.as_json(), sort_keys=True) == json.dumps(manifest.as_json(), sort_keys=True)
