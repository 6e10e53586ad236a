"""Theorem 2: the bound on γ, and a fuse that keeps to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sculpt.api import fuse
from sculpt.fusion.arithmetic.budget import Budget, L1Norms, l1_sums
from sculpt.fusion.arithmetic.passes import Pass
from sculpt.fusion.errors import MethodError, NonFiniteError
from sculpt.fusion.methods import AdaDare
from sculpt.fusion.record.manifest import Manifest
from sculpt.fusion.run.backend import NumpyBackend
from sculpt.fusion.run.bounds import measure_bounds
from sculpt.fusion.run.settings import Settings

from .test_kernels import BFLOAT16, DTYPES, SIZES, Dtypes, check_pass, make_tile

Pair = Callable[..., tuple[Path, Path]]
Reader = Callable[[Path], dict[str, np.ndarray]]


def passes_of(method: AdaDare) -> list[object]:
    """Run a reduction; return the functions of its passes."""
    tile, seen, value = make_tile((BFLOAT16,) * 3, 5000), [], None
    reduction = method.reduce(len(tile.base))
    while True:
        try:
            wanted = reduction.send(value)
        except StopIteration:
            return seen
        assert isinstance(wanted, Pass)
        seen.append(wanted.function)
        value = wanted.combine([NumpyBackend().run_pass(tile, wanted)])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtypes", DTYPES)
def test_the_kernel_gives_the_bits_of_the_definition(dtypes: Dtypes, size: int) -> None:
    check_pass(make_tile(dtypes, size), l1_sums)


def test_norms_are_measured_only_where_there_is_a_budget() -> None:
    assert l1_sums not in passes_of(AdaDare())
    assert l1_sums in passes_of(AdaDare(eta=1.0))
    assert l1_sums in passes_of(AdaDare(eta_relative=0.1))


def test_bounds_are_the_norms_of_the_files(make_pair: Pair, tensors_of: Reader) -> None:
    base, tuned = make_pair()
    a, b = tensors_of(base), tensors_of(tuned)
    found = measure_bounds(base, tuned)
    assert {bound.name for bound in found} == set(a)
    for bound in found:
        first, second = a[bound.name].astype(np.float64), b[bound.name].astype(np.float64)
        delta = np.abs(second - first).sum()
        assert bound.norms.delta == pytest.approx(delta, rel=1e-6)
        assert bound.norms.base == pytest.approx(np.abs(first).sum(), rel=1e-6)
        assert bound.largest_gamma(Budget(eta=3.0)) == pytest.approx(3.0 / delta, rel=1e-6)
        relative = bound.largest_gamma(Budget(eta_relative=0.02))
        assert relative == pytest.approx(0.02 * np.abs(first).sum() / delta, rel=1e-6)


def test_a_fuse_keeps_each_tensor_within_the_budget(make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair("float32")
    bounds = {bound.name: bound for bound in measure_bounds(base, tuned)}
    budget = Budget(eta_relative=0.122)
    fuse(
        base,
        tuned,
        output=tmp_path / "out",
        method=AdaDare(gamma=0.5, sparsity=0.5, eta_relative=0.122),
        calibration=False,
    )
    manifest = Manifest.read(tmp_path / "out")
    used = {record.name: record.figures["gamma"] for record in manifest.fused}
    assert {value < 0.5 for value in used.values()} == {True, False}  # γ is cut in some tensors, not in others
    for record in manifest.fused:
        bound = bounds[record.name].largest_gamma(budget)
        assert record.figures["gamma_bound"] == bound
        assert record.figures["gamma"] <= min(0.5, bound)
        assert record.figures["gamma"] == pytest.approx(min(0.5, bound), rel=1e-6)
        assert record.figures["expected_l1"] == pytest.approx(used[record.name] * bounds[record.name].norms.delta)
        assert record.figures["expected_l1"] <= record.figures["eta"] * (1 + 1e-9)
        if record.num_fused > 1000:
            assert record.distance_l1 == pytest.approx(record.figures["expected_l1"], rel=0.15)


def test_the_expected_distance_is_the_mean_over_seeds(make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair("float32")
    distances = []
    for seed in range(12):
        manifest = fuse(
            base,
            tuned,
            output=tmp_path / "out",
            method=AdaDare(gamma=1.0, sparsity=0.8, eta=0.5),
            calibration=False,
            settings=Settings(seed=seed),
            overwrite=True,
        )
        distances.append(sum(record.distance_l1 or 0.0 for record in manifest.fused))
        expected = sum(record.figures["expected_l1"] for record in manifest.fused)
    assert np.mean(distances) == pytest.approx(expected, rel=0.03)


def test_a_budget_that_binds_nowhere_changes_no_bit(
    make_pair: Pair, tmp_path: Path, tensors_of: Reader, same_bits: Callable[..., bool]
) -> None:
    base, tuned = make_pair()
    for name, method in (("without", AdaDare()), ("with", AdaDare(eta=1e9))):
        fuse(base, tuned, output=tmp_path / name, method=method, calibration=False)
    assert same_bits(tensors_of(tmp_path / "without"), tensors_of(tmp_path / "with"))


@pytest.mark.parametrize("method", [AdaDare(eta=0.0), AdaDare(eta_relative=0.0, gamma=1.0, sparsity=0.0)])
def test_a_budget_of_nothing_is_the_base(
    method: AdaDare, make_pair: Pair, tmp_path: Path, tensors_of: Reader, same_bits: Callable[..., bool]
) -> None:
    base, tuned = make_pair()
    fuse(base, tuned, output=tmp_path / "out", method=method, calibration=False)
    assert same_bits(tensors_of(tmp_path / "out"), tensors_of(base))


def test_a_cut_gamma_is_rounded_downwards_to_float32() -> None:
    norms = L1Norms(delta=3.0, base=1.0)
    for eta in (0.1, 0.2, 0.3, 1.0, 1e-3):
        cut = Budget(eta=eta).cut(1.0, norms)
        assert cut * norms.delta <= eta
        assert cut == float(np.float32(cut))
        assert cut == pytest.approx(eta / 3, rel=1e-6)


def test_bad_budgets_are_refused() -> None:
    with pytest.raises(MethodError, match="exclude each other"):
        AdaDare(eta=1.0, eta_relative=0.1)
    with pytest.raises(MethodError, match="`eta` must be at least 0, got -1"):
        AdaDare(eta=-1.0)
    with pytest.raises(MethodError, match="`eta_relative` must be at least 0, got nan"):
        AdaDare(eta_relative=float("nan"))


def test_a_non_finite_tensor_is_named(make_checkpoint: Callable[..., Path], make_pair: Pair) -> None:
    base, _ = make_pair("float32", name="x")
    from safetensors.numpy import load_file

    tensors = {k: v for file in sorted(base.glob("model*.safetensors")) for k, v in load_file(file).items()}
    bad = {name: tensor.copy() for name, tensor in tensors.items()}
    bad["model.norm.weight"][3] = np.inf
    tuned = make_checkpoint("bad", bad, config=json.loads((base / "config.json").read_text()))
    with pytest.raises(NonFiniteError, match=r"`model.norm.weight` in .* holds 1 NaN or infinite value"):
        measure_bounds(base, tuned)
