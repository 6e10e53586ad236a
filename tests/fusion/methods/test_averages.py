"""RegMean and Fisher averaging against their equations, worked out with other means."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.errors import CurvatureError, MethodError
from sculpt.fusion.methods import Fisher, RegMean
from sculpt.fusion.run.backend import Backend

Fuse = Callable[..., np.ndarray]
Models = Callable[..., list[np.ndarray]]
ROWS, WIDTH = 6, 10


def inputs(seed: int, num_tokens: int = 300, width: int = WIDTH) -> np.ndarray:
    """Return correlated inputs, shape (tokens, width)."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num_tokens, width)) @ rng.standard_normal((width, width))


def measured(x: np.ndarray, *, full: bool = True) -> Curvature:
    """Return what calibration measures of a linear layer with these inputs."""
    return Curvature(terms=((x * x).sum(0)[None, :],), num_tokens=len(x), gram=x.T @ x if full else None)


@pytest.fixture(name="three")
def _three(models: Models) -> list[np.ndarray]:
    return models(1, (ROWS, WIDTH), 3, np.float64)


def test_regmean_minimises_the_change_of_each_models_outputs(fuse: Fuse, three: list[np.ndarray]) -> None:
    base, *tuned = three
    x = [inputs(k, 200 + 100 * k) for k in range(3)]
    weights = (1.0, 2.0, 0.5)
    # Least squares over all tokens at once: each row of W is to give X_k·W_kᵀ, weighted by w_k / tokens_k.
    scaled = [np.sqrt(w / len(one)) * one for w, one in zip(weights, x, strict=True)]
    wanted = np.concatenate([one @ model.T for one, model in zip(scaled, tuned, strict=True)])
    expected = np.linalg.lstsq(np.concatenate(scaled), wanted, rcond=None)[0].T
    found = fuse(RegMean(alpha=1, weights=weights), base, *tuned, curvature=[measured(one) for one in x])
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_alpha_shrinks_what_lies_off_the_diagonal(fuse: Fuse, three: list[np.ndarray]) -> None:
    base, *tuned = three
    x = [inputs(k) for k in range(3)]
    grams = [0.3 * one.T @ one + 0.7 * np.diag((one * one).sum(0)) for one in x]
    expected = sum(model @ gram for model, gram in zip(tuned, grams, strict=True)) @ np.linalg.inv(sum(grams))
    found = fuse(RegMean(alpha=0.3), base, *tuned, curvature=[measured(one) for one in x])
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)
    diagonal = fuse(RegMean(alpha=0), base, *tuned, curvature=[measured(one) for one in x])
    np.testing.assert_allclose(
        diagonal, fuse(Fisher(), base, *tuned, curvature=[measured(one) for one in x]), rtol=1e-6, atol=1e-8
    )


def test_fisher_averages_by_the_mean_squares_of_the_inputs(fuse: Fuse, three: list[np.ndarray]) -> None:
    base, *tuned = three
    x = [inputs(k, 100 * (k + 1)) for k in range(3)]
    weights = np.array([1, 3, 0.2])
    f = np.stack([(one * one).mean(0) for one in x]) * weights[:, None]
    expected = np.einsum("krc,kc->rc", np.stack(tuned), f) / f.sum(0)
    found = fuse(Fisher(weights=tuple(weights)), base, *tuned, curvature=[measured(one, full=False) for one in x])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", [RegMean(weights=(3, 1, 0)), Fisher(weights=(3, 1, 0))], ids=["regmean", "fisher"])
@pytest.mark.parametrize("known", ["nothing", "no tokens"])
def test_what_no_model_saw_is_averaged_by_the_weights(
    method: RegMean | Fisher, known: str, fuse: Fuse, three: list[np.ndarray]
) -> None:
    base, *tuned = three
    unseen = None if known == "nothing" else measured(np.zeros((0, WIDTH)))
    found = fuse(method, base, *tuned, curvature=[unseen] * 3)
    np.testing.assert_allclose(found, 0.75 * tuned[0] + 0.25 * tuned[1], rtol=1e-6)


def test_an_input_that_no_model_saw_is_averaged_by_the_weights(fuse: Fuse, three: list[np.ndarray]) -> None:
    base, *tuned = three
    x = [inputs(k) for k in range(3)]
    for one in x:
        one[:, 4] = 0
    known = [measured(one) for one in x]
    expected = fuse(RegMean(alpha=1), *(np.delete(model, 4, 1) for model in (base, *tuned)), curvature=[
        measured(np.delete(one, 4, 1)) for one in x
    ])  # fmt: skip
    found = fuse(RegMean(alpha=1), base, *tuned, curvature=known)
    np.testing.assert_allclose(found[:, 4], np.mean(tuned, 0)[:, 4], rtol=1e-9)
    np.testing.assert_allclose(np.delete(found, 4, 1), expected, rtol=1e-8, atol=1e-10)


def test_a_model_that_saw_nothing_leaves_the_tensor_to_the_others(fuse: Fuse, three: list[np.ndarray]) -> None:
    base, one, other, _ = three
    known = [measured(inputs(0)), None]
    np.testing.assert_allclose(fuse(RegMean(), base, one, other, curvature=known), one, rtol=1e-9)
    np.testing.assert_allclose(fuse(Fisher(), base, one, other, curvature=known), one, rtol=1e-9)


def test_stacked_experts_are_averaged_each_by_its_own_inputs(fuse: Fuse, models: Models) -> None:
    base, *tuned = models(3, (2, ROWS, WIDTH), 2, np.float64)
    x = [[inputs(10 * k + e, 50 + 30 * e) for e in range(2)] for k in range(2)]
    known = [
        Curvature(
            terms=(np.stack([(one * one).sum(0)[None] for one in of_model]),),
            num_tokens=100,
            gram=np.stack([one.T @ one for one in of_model]),
        )
        for of_model in x
    ]
    found = fuse(RegMean(alpha=0.5), base, *tuned, curvature=known)
    for e in range(2):
        own = [Curvature(terms=(c.terms[0][e],), num_tokens=100, gram=c.gram[e]) for c in known if c.gram is not None]
        expected = fuse(RegMean(alpha=0.5), base[e], *(model[e] for model in tuned), curvature=own)
        np.testing.assert_allclose(found[e], expected, rtol=1e-10)


def test_a_device_gives_what_the_definition_gives(fuse: Fuse, three: list[np.ndarray], torch_backend: Backend) -> None:
    base, *tuned = [model.astype(np.float32) for model in three]
    known = [measured(inputs(k)) for k in range(3)]
    for method in (RegMean(), Fisher()):
        expected = fuse(method, base, *tuned, curvature=known)
        found = fuse(method, base, *tuned, curvature=known, backend=torch_backend)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_matrices_that_cannot_be_inverted_are_refused(fuse: Fuse, three: list[np.ndarray]) -> None:
    base, *tuned = three
    few = [measured(inputs(0, 2)) for _ in range(3)]  # rank 2 of 10
    with pytest.raises(MethodError, match="`w` cannot be factorised") as caught:
        fuse(RegMean(alpha=1), base, *tuned, curvature=few)
    assert "alpha" in str(caught.value.hint)


def test_statistics_of_another_tensor_are_refused(fuse: Fuse, three: list[np.ndarray]) -> None:
    base, *tuned = three
    other = measured(inputs(0, width=WIDTH + 1))
    for method in (RegMean(), Fisher()):
        with pytest.raises(CurvatureError, match="`w`"):
            fuse(method, base, *tuned, curvature=[other] * 3)


def test_statistics_that_do_not_fit_together_are_refused(fuse: Fuse, models: Models) -> None:
    base, *tuned = models(3, (2, ROWS, WIDTH), 2, np.float64)
    one = measured(inputs(0))
    apart = Curvature(terms=(one.terms[0][None],), num_tokens=1, gram=one.gram)
    stacked = Curvature(terms=(one.terms[0][None],), num_tokens=1, gram=np.stack([one.gram, one.gram]))  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(CurvatureError, match=r"`w` have shapes \[2, 10, 10\] and \[10, 10\]"):
        fuse(RegMean(), base, *tuned, curvature=[stacked, apart])


@pytest.mark.parametrize("weights", [0.0, (1.0, -1.0), (0.0, 0.0)])
@pytest.mark.parametrize("method", [RegMean, Fisher])
def test_weights_that_make_no_average_are_refused(method: type[RegMean | Fisher], weights: float) -> None:
    with pytest.raises(MethodError, match="weights"):
        method(weights=weights)
