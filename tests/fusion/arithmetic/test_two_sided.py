"""Two-sided curvature: its limits, an oracle by explicit least squares, and every shape of tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sculpt.fusion.arithmetic.curvature import Curvature, Curvatures
from sculpt.fusion.arithmetic.group import Group
from sculpt.fusion.arithmetic.matrices import Matrices, ReadRange
from sculpt.fusion.arithmetic.two_sided import Protection, counted_together
from sculpt.fusion.errors import CurvatureError, MethodError
from sculpt.fusion.methods import AdaDare, Dare, TaskArithmetic
from sculpt.fusion.record.manifest import Manifest
from sculpt.fusion.run.backend import KernelBackend, NumpyBackend, TorchBackend
from sculpt.fusion.run.fuse import execute
from sculpt.fusion.run.prepared import prepare
from sculpt.fusion.run.protector import Protector
from sculpt.fusion.run.settings import Settings


def seen(x: np.ndarray, *, gram: bool = True) -> Curvature:
    """Return the curvature of a linear weight that these rows go through, (num_tokens, d_in)."""
    wide = x.astype(np.float64)
    return Curvature(terms=((wide * wide).sum(0)[None],), num_tokens=len(x), gram=wide.T @ wide if gram else None)


def both(target: Curvature, general: Curvature) -> Curvatures:
    return general, target


def over(base: np.ndarray, *tuned: np.ndarray) -> ReadRange:
    return lambda start, stop: [model.reshape(-1)[start:stop] for model in (base, *tuned)]


def protect(
    base: np.ndarray,
    tuned: np.ndarray,
    curvature: Curvatures | None,
    protection: Protection,
    *,
    step: int | None = None,
) -> np.ndarray:
    """Return the protected tensor, asked for in pieces of `step` elements."""
    group = Group(name="w", shape=base.shape, curvatures=curvature or (None, None))
    protector, matrices = Protector(protection), Matrices(group, over(base, tuned))
    step = step or base.size
    pieces = [
        protector.tuned(group, start, min(start + step, base.size), matrices)[0] for start in range(0, base.size, step)
    ]
    return np.concatenate(pieces).reshape(base.shape)


def pair(d_out: int = 6, d_in: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((d_out, d_in)).astype(np.float32)
    return base, base + 0.1 * rng.standard_normal((d_out, d_in)).astype(np.float32)


def inputs(tokens: int, d_in: int, seed: int) -> np.ndarray:
    """Correlated rows."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((tokens, d_in)) @ rng.standard_normal((d_in, d_in))).astype(np.float32)


FORMS = ("full", "block:2", "diagonal")


@settings(max_examples=40, deadline=None)
@given(
    d_out=st.integers(1, 9),
    d_in=st.integers(1, 9),
    seed=st.integers(0, 99),
    weight=st.floats(0, 1e3),
    form=st.sampled_from(FORMS),
)
def test_equal_sides_interpolate(d_out: int, d_in: int, seed: int, weight: float, form: str) -> None:
    base, tuned = pair(d_out, d_in, seed)
    side = seen(inputs(3 * d_in, d_in, seed))
    found = protect(base, tuned, both(side, side), Protection(weight=weight, curvature=form))
    np.testing.assert_allclose(found - base, (tuned - base) / (1 + weight), atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_no_weight_gives_the_tuned_bits_and_a_huge_one_the_base(form: str) -> None:
    base, tuned = pair()
    curvature = both(seen(inputs(40, 5, 1)), seen(inputs(40, 5, 2)))
    assert np.array_equal(protect(base, tuned, curvature, Protection(weight=0, curvature=form)), tuned)
    nearly = protect(base, tuned, curvature, Protection(weight=1e-9, curvature=form))
    np.testing.assert_allclose(nearly, tuned, atol=1e-6)
    np.testing.assert_allclose(
        protect(base, tuned, curvature, Protection(weight=1e12, curvature=form)), base, atol=1e-6
    )


@pytest.mark.parametrize("weight", [0.3, 1.0, 4.0])
def test_full_form_solves_the_least_squares_problem(weight: float) -> None:
    base, tuned = pair(4, 5)
    x, z = inputs(30, 5, 1), inputs(50, 5, 2)
    found = protect(base, tuned, both(seen(x), seen(z)), Protection(weight=weight, ridge=0))
    # Rows of one tall system: outputs of the tuned model on x, those of the base on z, each as a mean.
    a, b = 1 / np.sqrt(len(x)), np.sqrt(weight / len(z))
    tall = np.concatenate([a * x, b * z]).astype(np.float64)
    wanted = np.concatenate([a * x @ tuned.T, b * z @ base.T]).astype(np.float64)
    expected = np.linalg.lstsq(tall, wanted, rcond=None)[0].T
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_weight_one_is_regmean_of_two_models() -> None:
    base, tuned = pair(4, 5)
    one, other = seen(inputs(30, 5, 1)), seen(inputs(30, 5, 2))
    assert one.gram is not None
    assert other.gram is not None
    # Jin et al. 2023, eq. 2: W_M = (Σ G_i)⁻¹ Σ G_i W_i, for weights that multiply from the right.
    regmean = np.linalg.solve(one.gram + other.gram, one.gram @ tuned.T + other.gram @ base.T).T
    np.testing.assert_allclose(protect(base, tuned, both(one, other), Protection(ridge=0)), regmean, atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("target_tokens", "general_tokens"), [(2, 3), (2, 200), (200, 2)])
def test_few_samples_never_give_nan(form: str, target_tokens: int, general_tokens: int) -> None:
    base, tuned = pair(3, 24)
    curvature = both(seen(inputs(target_tokens, 24, 1)), seen(inputs(general_tokens, 24, 2)))
    found = protect(base, tuned, curvature, Protection(curvature=form))
    assert np.isfinite(found).all()


def test_ridge_sends_unused_directions_to_an_interpolation_and_the_others_to_their_side() -> None:
    base, tuned = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    target, general = np.zeros((10, 3)), np.zeros((10, 3))
    target[:, 0], general[:, 1] = 1, 1  # input 0 is the target's alone, 1 general data's alone, 2 nobody's
    for form in ("full", "diagonal"):
        found = protect(base, tuned, both(seen(target), seen(general)), Protection(curvature=form, weight=3))[0]
        np.testing.assert_allclose(found, [1, 0, 0.25], atol=4e-3)


def test_a_side_without_tokens_has_no_part_and_two_without_interpolate() -> None:
    base, tuned = pair()
    nothing = Curvature(terms=(), num_tokens=0)
    x = seen(inputs(40, 5, 1))
    for form in FORMS:
        protection = Protection(curvature=form, weight=3)
        np.testing.assert_allclose(protect(base, tuned, both(x, nothing), protection), tuned, atol=1e-6)
        np.testing.assert_allclose(protect(base, tuned, both(nothing, x), protection), base, atol=1e-6)
        for unknown in (both(nothing, nothing), None):
            found = protect(base, tuned, unknown, protection)
            np.testing.assert_allclose(found, base + (tuned - base) / 4, atol=1e-6)


def test_embedding_rows_are_weighed_by_how_often_their_tokens_come() -> None:
    base, tuned = pair(4, 3)
    counts = [np.array([[8.0], [0.0], [2.0], [0.0]]), np.array([[0.0], [5.0], [5.0], [0.0]])]
    target, general = (Curvature(terms=(c,), num_tokens=10) for c in counts)
    found = protect(base, tuned, both(target, general), Protection(weight=2, ridge=0))
    kept = (found - base) / (tuned - base)
    np.testing.assert_allclose(kept, np.array([1, 0, 0.2 / (0.2 + 2 * 0.5), 1 / 3])[:, None] * np.ones(3), atol=1e-5)


def test_layouts_agree_with_one_matrix_at_a_time() -> None:
    base, tuned = pair(6, 5)
    curvature = both(seen(inputs(40, 5, 1)), seen(inputs(40, 5, 2)))
    expected = protect(base, tuned, curvature, Protection())
    target, general = seen(inputs(40, 5, 1)), seen(inputs(40, 5, 2))
    turned = both(replace(target, terms=(target.terms[0].T,)), replace(general, terms=(general.terms[0].T,)))
    found = protect(np.ascontiguousarray(base.T), np.ascontiguousarray(tuned.T), turned, Protection())
    np.testing.assert_allclose(found, expected.T, atol=1e-6)

    other_base, other_tuned = pair(6, 5, seed=7)
    other_target, other_general = seen(inputs(40, 5, 3)), seen(inputs(40, 5, 4))
    other = both(other_target, other_general)

    def stack(one: Curvature, two: Curvature) -> Curvature:
        return Curvature(
            terms=(np.stack([one.terms[0], two.terms[0]]),),
            num_tokens=80,
            gram=np.stack([one.gram, two.gram]),  # pyright: ignore[reportArgumentType, reportCallIssue]
        )

    stacked = both(stack(target, other_target), stack(general, other_general))
    found = protect(np.stack([base, other_base]), np.stack([tuned, other_tuned]), stacked, Protection(ridge=0))
    apart = [
        protect(base, tuned, curvature, Protection(ridge=0)),
        protect(other_base, other_tuned, other, Protection(ridge=0)),
    ]
    np.testing.assert_allclose(found, np.stack(apart), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_pieces_have_the_bits_of_the_whole(form: str) -> None:
    base, tuned = pair(33, 40)
    curvature = both(seen(inputs(90, 40, 1)), seen(inputs(90, 40, 2)))
    protection = Protection(curvature=form)
    whole = protect(base, tuned, curvature, protection)
    for step in (1, 7, 40, 1000):
        assert np.array_equal(protect(base, tuned, curvature, protection, step=step), whole)


def test_blocks_of_all_inputs_are_the_full_form_and_of_one_the_diagonal() -> None:
    base, tuned = pair(6, 5)
    curvature = both(seen(inputs(40, 5, 1)), seen(inputs(40, 5, 2)))
    for blocks, form in (("block:5", "full"), ("block:99", "full"), ("block:1", "diagonal")):
        found, expected = (protect(base, tuned, curvature, Protection(curvature=c)) for c in (blocks, form))
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_experts_stored_apart_are_weighed_as_when_stacked() -> None:
    names = [f"mlp.experts.{k}.w" for k in range(2)]
    base = {names[0]: (10, 4.0), names[1]: (30, 2.0)}

    def curvatures(facts: dict[str, tuple[int, float]]) -> dict[str, Curvature]:
        return {n: Curvature(terms=(np.full((1, 2), s),), num_tokens=t) for n, (t, s) in facts.items()}

    found = counted_together(curvatures(base))
    assert [found[name].num_tokens for name in names] == [40, 40]
    assert counted_together(curvatures({names[0]: (5, 1.0)}))[names[0]].num_tokens == 5


@pytest.mark.parametrize(
    "options", [{"weight": -1}, {"weight": float("nan")}, {"ridge": -1}, {"curvature": "block:0"}, {"scores": "x"}]
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(MethodError, match="must be"):
        Protection(**options)  # pyright: ignore[reportArgumentType]


def test_bad_statistics_are_refused_by_name() -> None:
    base, tuned = pair()
    good = seen(inputs(40, 5, 1))
    assert good.gram is not None
    with pytest.raises(CurvatureError, match=r"`w`.*shape"):
        protect(base, tuned, both(seen(inputs(40, 4, 1)), seen(inputs(40, 4, 1))), Protection())
    with pytest.raises(CurvatureError, match="`w` holds a negative"):
        protect(base, tuned, both(replace(good, gram=-good.gram), good), Protection())
    hidden = good.gram.copy()
    hidden[0, 3] = np.nan  # above the diagonal, where no factorisation looks
    for pair_of in (both(replace(good, gram=hidden), good), both(good, replace(good, gram=hidden))):
        with pytest.raises(CurvatureError, match="`w` holds a negative or non-finite"):
            protect(base, tuned, pair_of, Protection())
    with pytest.raises(CurvatureError, match=r"`w` have shapes \[4, 4\] and \[5, 5\]"):
        protect(base, tuned, both(good, seen(inputs(40, 4, 1))), Protection())
    low = seen(inputs(2, 5, 1))
    with pytest.raises(MethodError, match="`w` cannot be factorised"):
        protect(base, tuned, both(low, low), Protection(ridge=0))


def whole_curvature(base: Path) -> dict[str, Curvatures]:
    from sculpt.fusion.checkpoint import open_checkpoint

    found = {}
    for k, (name, info) in enumerate(open_checkpoint(base).tensors.items()):
        if len(info.shape) == 2 and "embed" not in name:
            d_in = info.shape[1]
            found[name] = both(seen(inputs(3 * d_in, d_in, k)), seen(inputs(3 * d_in, d_in, 100 + k)))
    return found


METHODS = (AdaDare(sparsity=0.9, gamma=1), AdaDare(sparsity=0.5, scope="model"), Dare(), TaskArithmetic(scale=0.7))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_tiles_threads_and_backends_change_no_bit(
    make_pair: Callable[..., tuple[Path, Path]], tmp_path: Path, method: object
) -> None:
    base, tuned = make_pair()
    curvature, found = whole_curvature(base), set()
    backends = (
        NumpyBackend(tile_elements=1 << 16),
        KernelBackend(threads=3, tile_elements=4096),
        TorchBackend("cpu", tile_elements=4096),
    )
    for k, backend in enumerate(backends):
        out = tmp_path / str(k)
        settings = Settings(protection=Protection(), seed=3)
        execute(
            prepare(base, [tuned], output=out, method=method, settings=settings),  # pyright: ignore[reportArgumentType]
            curvature=curvature,
            backend=backend,
        )
        found.add(b"".join(file.read_bytes() for file in sorted(out.glob("*.safetensors"))))
    assert len(found) == 1


def test_dense_fuse_writes_the_protected_tensors_and_says_how(
    make_pair: Callable[..., tuple[Path, Path]], tensors_of: Callable[[Path], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    base, tuned = make_pair("float32")
    curvature, protection = whole_curvature(base), Protection(weight=2)
    out = tmp_path / "out"
    method = AdaDare(sparsity=0, gamma=1)
    execute(
        prepare(base, [tuned], output=out, method=method, settings=Settings(protection=protection)),
        curvature=curvature,
    )
    ours, before, after = tensors_of(out), tensors_of(base), tensors_of(tuned)
    for name in ours:
        expected = protect(before[name], after[name], curvature.get(name), protection)
        np.testing.assert_array_equal(ours[name], expected)
    manifest = Manifest.read(out)
    assert manifest.settings["protection"]["weight"] == 2
    forms = {record.name: record.protected for record in manifest.tensors}
    assert forms["model.layers.0.mlp.up_proj.weight"] == "full"
    assert forms["model.norm.weight"] == "interpolation"


def test_nan_is_set_aside_where_that_is_allowed(
    make_checkpoint: Callable[..., Path], tensors_of: Callable[[Path], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    from sculpt.fusion.errors import NonFiniteError
    from sculpt.fusion.plan.plan import Policies

    before, after = pair(8, 5)
    after[2, 3] = np.nan
    base, tuned = make_checkpoint("a", {"w": before}, config={}), make_checkpoint("b", {"w": after}, config={})
    curvature = {"w": both(seen(inputs(40, 5, 1)), seen(inputs(40, 5, 2)))}

    def run(output: Path, policies: Policies) -> None:
        settings = Settings(protection=Protection(), policies=policies)
        prepared = prepare(base, [tuned], output=output, method=AdaDare(sparsity=0, gamma=1), settings=settings)
        execute(prepared, curvature=curvature)

    with pytest.raises(NonFiniteError, match="`w`"):
        run(tmp_path / "refused", Policies())
    run(tmp_path / "kept", Policies(on_nonfinite="keep"))
    found = tensors_of(tmp_path / "kept")["w"]
    assert np.isnan(found[2, 3])
    assert np.isfinite(np.delete(found.reshape(-1), 13)).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_accelerator_agrees_with_the_processor() -> None:
    base, tuned = pair(300, 200)
    curvature = both(seen(inputs(900, 200, 1)), seen(inputs(900, 200, 2)))
    on_cuda = Protector(Protection(), device="cuda")
    group = Group(name="w", shape=base.shape, curvatures=curvature)
    [found] = on_cuda.tuned(group, 0, base.size, Matrices(group, over(base, tuned)))
    np.testing.assert_allclose(found.reshape(base.shape), protect(base, tuned, curvature, Protection()), atol=1e-5)
