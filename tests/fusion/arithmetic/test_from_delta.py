"""A target's curvature from its delta, and several fine-tunes under one base: against NumPy's own linear algebra."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import sculpt
import torch
from sculpt.fusion.arithmetic.curvature import UNMEASURED, Curvature
from sculpt.fusion.arithmetic.from_delta import delta_moment, inputs_of
from sculpt.fusion.arithmetic.group import Group
from sculpt.fusion.arithmetic.matrices import Matrices
from sculpt.fusion.arithmetic.two_sided import WEIGHTS, Protection
from sculpt.fusion.checkpoint.memory import MemorySource
from sculpt.fusion.errors import MethodError
from sculpt.fusion.methods import Dare
from sculpt.fusion.plan.plan import make_plan
from sculpt.fusion.plan.step import Request
from sculpt.fusion.run.low_rank import low_rank_models
from sculpt.fusion.run.protector import Protector
from sculpt.fusion.run.settings import Settings

RIDGE = 1e-3


def seen(tokens: int, d_in: int, seed: int, scale: float = 1.0) -> Curvature:
    """Return the curvature of correlated inputs."""
    rng = np.random.default_rng(seed)
    x = scale * rng.standard_normal((tokens, d_in)) @ rng.standard_normal((d_in, d_in))
    return Curvature(terms=((x * x).sum(0)[None],), num_tokens=tokens, gram=x.T @ x)


def mean(curvature: Curvature) -> np.ndarray:
    assert curvature.gram is not None
    return curvature.gram / curvature.num_tokens


def ridged(matrix: np.ndarray) -> np.ndarray:
    return matrix + RIDGE * np.trace(matrix) / len(matrix) * np.eye(len(matrix))


def models(count: int, shape: tuple[int, ...] = (9, 12), seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(shape).astype(np.float32)
    return base, [base + 0.1 * rng.standard_normal(shape).astype(np.float32) for _ in range(count)]


def protected(
    base: np.ndarray,
    tuned: list[np.ndarray],
    general: Curvature | None,
    targets: list[Curvature | None],
    protection: Protection,
    *,
    joins: bool = False,
) -> tuple[list[np.ndarray], str]:
    """Return the protected tensors and their forms."""
    group = Group(name="w", shape=base.shape, curvatures=(general, *targets))
    matrices = Matrices(group, lambda start, stop: [m.reshape(-1)[start:stop] for m in (base, *tuned)])
    protector = Protector(protection, joins=joins)
    found = [own.reshape(base.shape) for own in protector.tuned(group, 0, base.size, matrices)]
    return found, protector.forms(group)


def from_delta(delta: np.ndarray, general: np.ndarray) -> np.ndarray:
    """Return A as the definition says it, matrix by matrix."""
    c = delta.astype(np.float64).T @ delta.astype(np.float64)
    d_c, d_g = np.diag(np.diag(c) ** -0.5), np.diag(np.diag(general) ** 0.5)
    a = d_g @ d_c @ c @ d_c @ d_g
    return a * np.trace(general) / np.trace(a)


@pytest.mark.parametrize("weight", [0.03, 0.1, 1.0])
def test_delta_stands_in_for_samples(weight: float) -> None:
    base, (tuned,) = models(1)
    general = seen(60, 12, 1)
    (found,), form = protected(base, [tuned], general, [UNMEASURED], Protection(weight=weight))
    g, a = mean(general), from_delta(tuned - base, mean(general))
    expected = base + (tuned - base) @ ridged(a) @ np.linalg.inv(ridged(a) + weight * ridged(g))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert form == "delta"
    np.testing.assert_array_equal(
        found, protected(base, [tuned], general, [None], Protection(weight=weight, target="delta"))[0][0]
    )


@pytest.mark.parametrize(("target", "a"), [("identity", np.eye), ("general", None)])
def test_other_stand_ins(target: str, a: object) -> None:
    base, (tuned,) = models(1)
    general = seen(60, 12, 1)
    protection = Protection(target=target)  # pyright: ignore[reportArgumentType]
    (found,), form = protected(base, [tuned], general, [UNMEASURED], protection)
    g = mean(general)
    own = np.diag(np.diag(g)) if a is None else np.eye(12) * np.trace(g) / 12
    expected = base + (tuned - base) @ ridged(own) @ np.linalg.inv(ridged(own) + WEIGHTS[target] * ridged(g))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert form == target


def test_scale_of_columns_that_adam_loses_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    delta, general = rng.standard_normal((20, 8)), torch.from_numpy(mean(seen(50, 8, 1)))
    plain = inputs_of(delta_moment([torch.from_numpy(delta)]), general)
    scaled = inputs_of(delta_moment([torch.from_numpy(delta * rng.uniform(0.1, 10, 8))]), general)
    np.testing.assert_allclose(plain, scaled, rtol=1e-9)
    assert float(plain.trace()) == pytest.approx(float(general.trace()))
    nothing = inputs_of(torch.zeros((8, 8), dtype=torch.float64), general)
    assert not nothing.any()


def test_moment_of_a_delta_comes_in_runs_of_rows() -> None:
    delta = torch.randn((30, 7), generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(delta_moment([delta[:11], delta[11:]]), delta_moment([delta]), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("rank", "low"), [(4, True), (12, True), (64, False), (96, False)])
def test_low_rank_is_recognised_through_the_rounding_of_a_merge(rank: int, low: bool, dtype: str) -> None:
    rng = np.random.default_rng(rank)
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    base = {f"layers.{k}.w": (0.05 * rng.standard_normal((96, 128))).astype(kind) for k in range(3)}
    delta = {n: 2e-3 * rng.standard_normal((96, rank)) @ rng.standard_normal((rank, 128)) / rank**0.5 for n in base}
    tuned = {name: (array.astype(np.float64) + delta[name]).astype(kind) for name, array in base.items()}
    plan = make_plan([MemorySource(m, name=n) for m, n in ((base, "b"), (tuned, "t"))], lambda _: Dare(), Request())
    assert (low_rank_models(plan) == {0}) == low


def test_low_rank_has_a_weight_of_its_own_unless_one_is_given() -> None:
    rng = np.random.default_rng(3)
    base = rng.standard_normal((40, 32)).astype(np.float32)
    tuned = (base + 0.1 * rng.standard_normal((40, 2)) @ rng.standard_normal((2, 32))).astype(np.float32)

    def moved(weight: float | None) -> np.ndarray:
        settings = Settings(protection=Protection(weight=weight))
        return sculpt.apply(sculpt.TaskArithmetic(), base, tuned, general=seen(90, 32, 1), settings=settings)

    assert np.array_equal(moved(None), moved(WEIGHTS["low-rank delta"]))
    assert not np.array_equal(moved(None), moved(WEIGHTS["delta"]))


def test_one_dimensional_tensors_and_embeddings_are_interpolated_and_what_text_never_reached_stays() -> None:
    protection = Protection(weight=0.25)
    base, (tuned,) = models(1, (6,))
    (found,), form = protected(base, [tuned], None, [UNMEASURED], protection)
    np.testing.assert_allclose(found, base + (tuned - base) / 1.25, atol=1e-6)
    assert form == "interpolated by design"

    base, (tuned,) = models(1, (6, 4))
    counts = Curvature(terms=(np.array([[3.0], [0], [1], [0], [0], [2]]),), num_tokens=6)
    (found,), form = protected(base, [tuned], counts, [UNMEASURED], Protection(weight=0.25, ridge=0))
    np.testing.assert_allclose(found, base + 0.8 * (tuned - base), atol=1e-6)
    assert form == "interpolated by design"
    (found,), form = protected(base, [tuned], None, [UNMEASURED], protection)
    np.testing.assert_array_equal(found, tuned)
    assert form == "target alone"


def joint(
    base: np.ndarray, tuned: list[np.ndarray], matrices: list[np.ndarray], counts: list[float], g: np.ndarray
) -> np.ndarray:
    top = sum(c * (t - base) @ a for t, a, c in zip(tuned, matrices, counts, strict=True))
    return base + top @ np.linalg.inv(sum(c * a for a, c in zip(matrices, counts, strict=True)) + g)


@pytest.mark.parametrize("weight", [0.0, 0.3, 2.0])
def test_several_fine_tunes_solve_one_least_squares_problem(weight: float) -> None:
    base, tuned = models(3)
    general, targets = seen(70, 12, 1), [seen(50, 12, 10 + k, scale=10.0**k) for k in range(3)]
    protection = Protection(weight=weight, shares=(1, 2, 0.5))
    (found,), form = protected(base, tuned, general, [*targets], protection, joins=True)
    g = mean(general)
    scaled = [ridged(mean(c) * np.trace(g) / np.trace(mean(c))) for c in targets]  # activations of any size count alike
    np.testing.assert_allclose(found, joint(base, tuned, scaled, [1, 2, 0.5], weight * ridged(g)), atol=2e-5)
    assert form == "full"


def test_samples_of_one_and_the_delta_of_another_each_count_by_their_own_weight() -> None:
    base, tuned = models(2)
    general, target = seen(70, 12, 1), seen(50, 12, 2)
    (found,), form = protected(base, tuned, general, [target, UNMEASURED], Protection(), joins=True)
    g = mean(general)
    matrices = [mean(target) * np.trace(g) / np.trace(mean(target)), from_delta(tuned[1] - base, g)]
    counts = [1 / WEIGHTS["data"], 1 / WEIGHTS["delta"]]
    np.testing.assert_allclose(found, joint(base, tuned, [*map(ridged, matrices)], counts, ridged(g)), atol=2e-5)
    assert form == "full, delta"


def test_one_model_alone_is_the_same_put_together_or_not() -> None:
    base, tuned = models(1)
    general, target = seen(70, 12, 1), seen(50, 12, 2)
    for sides in ([target], [UNMEASURED]):
        one, other = (protected(base, tuned, general, sides, Protection(), joins=j)[0][0] for j in (False, True))
        np.testing.assert_array_equal(one, other)


def test_rows_of_embeddings_go_to_the_models_that_see_their_tokens() -> None:
    base, tuned = models(2, (4, 3))
    general, one, other = (
        Curvature(terms=(np.array(counts, float)[:, None],), num_tokens=8)
        for counts in ([4, 4, 0, 0], [8, 0, 0, 0], [4, 0, 4, 0])
    )
    (found,), form = protected(
        base, tuned, general, [one, other], Protection(weight=2, ridge=0, shares=(1, 3)), joins=True
    )
    shares = np.array([[8 / 28, 12 / 28], [0, 0], [0, 1], [1 / 6, 3 / 6]])  # by w·a/(Σw·a + λ·g); the last by w alone
    expected = base + sum(shares[:, k, None] * (tuned[k] - base) for k in range(2))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert form == "diagonal"


def test_stacked_experts_are_each_their_own_matrix() -> None:
    base, tuned = models(1, (3, 5, 12))
    parts = [seen(40, 12, k) for k in range(3)]
    general = Curvature(
        terms=(np.stack([p.terms[0] for p in parts]),),
        num_tokens=40,
        gram=np.stack([p.gram for p in parts]),  # pyright: ignore[reportArgumentType, reportCallIssue]
    )
    (found,), _ = protected(base, tuned, general, [UNMEASURED], Protection(weight=0.1, ridge=0))
    for k in range(3):
        one = protected(base[k], [tuned[0][k]], parts[k], [UNMEASURED], Protection(weight=0.1, ridge=0))[0][0]
        np.testing.assert_allclose(found[k], one, atol=1e-5)


def test_an_expert_that_no_general_sample_reached_is_interpolated() -> None:
    base, tuned = models(1, (2, 5, 12))
    one = seen(40, 12, 0)
    assert one.gram is not None
    general = Curvature(
        terms=(np.stack([one.terms[0], 0 * one.terms[0]]),), num_tokens=40, gram=np.stack([one.gram, 0 * one.gram])
    )
    (found,), form = protected(base, tuned, general, [UNMEASURED], Protection(weight=0.25))
    np.testing.assert_allclose(found[1], base[1] + (tuned[0][1] - base[1]) / 1.25, atol=1e-6)
    assert form == "delta but interpolation of 1"


def test_diagonals_of_a_delta_are_refused() -> None:
    with pytest.raises(MethodError, match="matrices"):
        Protection(target="delta", curvature="diagonal")
