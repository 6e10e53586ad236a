"""Model Tailor against a slow oracle, and against what it is for: the layer's output."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.arithmetic.inverse_factor import inverse_factor, inverse_factors
from sculpt.fusion.errors import CurvatureError, MethodError
from sculpt.fusion.methods import Tailor

Fuse = Callable[..., np.ndarray]


def layer(seed: int = 0, rows: int = 40, columns: int = 96) -> tuple[np.ndarray, np.ndarray, np.ndarray, Curvature]:
    """Return base, tuned, correlated inputs (tokens, columns) and their curvature."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((rows, columns)) * 0.05
    tuned = base + rng.standard_t(3, (rows, columns)) * 0.01
    x = rng.standard_normal((400, columns)) @ rng.standard_normal((columns, columns)) * 0.3 + rng.standard_normal(
        columns
    )
    return base, tuned, x, Curvature(terms=((x * x).sum(0)[None, :],), num_tokens=len(x), gram=x.T @ x)


def oracle(base: np.ndarray, tuned: np.ndarray, gram: np.ndarray, *, sparsity: float, w: float, sign: float, size: int):
    """The algorithm as the paper's code has it, column by column over the whole of the later matrix, in float64."""
    columns = base.shape[1]
    hessian = 2 * gram + np.eye(columns)
    hessian += 0.01 * np.mean(np.diag(hessian)) * np.eye(columns)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    current, fused = tuned.copy(), base.copy()
    for start in range(0, columns, size):
        block = slice(start, start + size)
        score = 0.0
        for part, weight in (
            (np.abs(tuned - base)[:, block], w),
            (current[:, block] ** 2 / np.diag(upper)[block] ** 2, 1 - w),
        ):
            score = score + weight * (part - part.mean(1, keepdims=True)) / part.std(1, ddof=1, keepdims=True)
        cut = np.sort(score.ravel())[int(score.size * sparsity) - 1]
        for i in range(score.shape[1]):
            j = start + i
            fused[:, j] = np.where(score[:, i] > cut, current[:, j], base[:, j])
            error = (current[:, j] - fused[:, j]) / upper[j, j]
            current[:, j:] += sign * error[:, None] * upper[j, j:]
    return fused


@pytest.mark.parametrize(("compensation", "sign"), [("obs", -1), ("released", 1), ("none", 0)])
def test_it_is_the_papers_algorithm(compensation: str, sign: int, fuse: Fuse) -> None:
    base, tuned, _, curvature = layer()
    method = Tailor(sparsity=0.9, compensation=compensation, block_size=32)  # pyright: ignore[reportArgumentType]
    expected = oracle(base, tuned, curvature.gram, sparsity=0.9, w=0.8, sign=sign, size=32)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(fuse(method, base, tuned, curvature=curvature), expected, rtol=1e-9, atol=1e-12)


def errors(fuse: Fuse, seed: int) -> dict[str, float]:
    base, tuned, x, curvature = layer(seed)
    found = {}
    for compensation in ("obs", "released", "none"):
        fused = fuse(Tailor(sparsity=0.9, compensation=compensation), base, tuned, curvature=curvature)  # pyright: ignore[reportArgumentType]
        found[compensation] = float(np.linalg.norm(x @ (fused - tuned).T) / np.linalg.norm(x @ (base - tuned).T))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_compensation_with_the_sign_of_obs_is_the_one_that_helps(seed: int, fuse: Fuse) -> None:
    found = errors(fuse, seed)
    assert found["obs"] < found["none"] < found["released"]


def test_exactly_the_sparsity_goes_back_to_the_bits_of_the_base(fuse: Fuse) -> None:
    base, tuned, _, curvature = layer(columns=64)
    base, tuned = base.astype(np.float32), tuned.astype(np.float32)
    fused = fuse(Tailor(sparsity=0.75, block_size=16), base, tuned, curvature=curvature)
    for start in range(0, 64, 16):
        block = slice(start, start + 16)
        assert (fused[:, block] == base[:, block]).sum() == int(0.75 * 40 * 16)


def test_without_compensation_the_kept_have_the_bits_of_the_tuned_model(fuse: Fuse) -> None:
    base, tuned, _, curvature = layer()
    base, tuned = base.astype(np.float32), tuned.astype(np.float32)
    fused = fuse(Tailor(compensation="none"), base, tuned, curvature=curvature)
    assert ((fused == base) | (fused == tuned)).all()


def test_a_transposed_weight_is_tailored_over_its_own_inputs(fuse: Fuse) -> None:
    base, tuned, _, curvature = layer(rows=96)
    turned = Curvature(terms=(curvature.terms[0].T,), num_tokens=1, gram=curvature.gram)
    expected = fuse(Tailor(), base, tuned, curvature=curvature)
    found = fuse(Tailor(), np.ascontiguousarray(base.T), np.ascontiguousarray(tuned.T), curvature=turned)
    np.testing.assert_array_equal(found.T, expected)


def test_stacked_experts_are_tailored_each_with_its_own_hessian(fuse: Fuse) -> None:
    one, other = layer(1), layer(2)
    base, tuned = np.stack([one[0], other[0]]), np.stack([one[1], other[1]])
    grams = np.stack([one[3].gram, other[3].gram])  # pyright: ignore[reportArgumentType, reportCallIssue]
    term = np.stack([one[3].terms[0], other[3].terms[0]])
    fused = fuse(Tailor(), base, tuned, curvature=Curvature(terms=(term,), num_tokens=1, gram=grams))
    for k, (b, t, _, curvature) in enumerate((one, other)):
        np.testing.assert_array_equal(fused[k], fuse(Tailor(), b, t, curvature=curvature))


@pytest.mark.parametrize("shape", [(8,), (8, 1), (1, 8), (6, 4)])
def test_rows_without_spread_have_scores_and_the_result_is_finite(shape: tuple[int, ...], fuse: Fuse) -> None:
    base, tuned = np.full(shape, 0.5), np.full(shape, 0.75)
    assert np.isfinite(fuse(Tailor(sparsity=0.5), base, tuned)).all()


def test_the_factor_is_the_upper_cholesky_factor_of_the_damped_inverse() -> None:
    gram = layer()[3].gram
    assert gram is not None
    damped = gram + 0.01 * np.mean(np.diag(gram)) * np.eye(len(gram))
    factor = inverse_factor("w", gram)
    np.testing.assert_allclose(factor, np.triu(factor))
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(len(gram)), atol=1e-9)


def test_damping_grows_until_the_hessian_is_positive_definite() -> None:
    hessian = np.diag([1.0, 1.0, -0.05])
    factor = inverse_factor("w", hessian)
    np.testing.assert_allclose(np.diag(factor), 1 / np.sqrt(np.diag(hessian) + 0.1 * 1.95 / 3))


def test_a_hessian_that_no_damping_saves_is_refused_by_name() -> None:
    with pytest.raises(MethodError, match=r"`model\.w` is not positive definite"):
        inverse_factor("model.w", np.diag([1.0, -5.0]))


def test_a_hessian_of_another_width_is_refused() -> None:
    with pytest.raises(CurvatureError, match="does not fit"):
        inverse_factors("w", (4, 6), Curvature(terms=(np.ones((1, 5)),), num_tokens=1, gram=np.eye(5)))
