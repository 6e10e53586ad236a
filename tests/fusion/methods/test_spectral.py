"""TSV-M, Iso-C, WUDI and LiNeS against their equations, worked out with other means."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import scipy.linalg
import sculpt
import torch
from sculpt.fusion.errors import MethodError
from sculpt.fusion.methods import IsoC, Lines, Method, TsvM, Wudi
from sculpt.fusion.run.backend import Backend

Fuse = Callable[..., np.ndarray]
Models = Callable[..., list[np.ndarray]]
SHAPE = (12, 20)
SPECTRAL: list[Method] = [TsvM(), IsoC(), Wudi()]
spectral = pytest.mark.parametrize("method", SPECTRAL, ids=[method.name for method in SPECTRAL])


def directions(delta: np.ndarray) -> list[tuple[np.ndarray, float, np.ndarray]]:
    """Return singular directions (left, value, right), largest first, by the eigenvectors of δᵀδ."""
    values, vectors = np.linalg.eigh(delta.T @ delta)
    order = np.argsort(values)[::-1][: min(delta.shape)]
    found = []
    for k in order:
        moved = delta @ vectors[:, k]
        found.append((moved / np.linalg.norm(moved), float(np.linalg.norm(moved)), vectors[:, k]))
    return found


@pytest.mark.parametrize("shape", [SHAPE, SHAPE[::-1]])
def test_tsv_m_makes_each_models_share_orthogonal_to_the_others(
    shape: tuple[int, int], fuse: Fuse, models: Models
) -> None:
    base, *tuned = models(0, shape, 3, np.float64)
    kept = [found for model in tuned for found in directions(model - base)[: min(shape) // 3]]
    left, _ = scipy.linalg.polar(np.stack([u for u, _, _ in kept], 1))
    right, _ = scipy.linalg.polar(np.stack([v for _, _, v in kept], 1))
    expected = base + 0.7 * left @ np.diag([s for _, s, _ in kept]) @ right.T
    np.testing.assert_allclose(fuse(TsvM(scale=0.7), base, *tuned), expected, rtol=1e-7, atol=1e-10)


def test_iso_c_makes_all_directions_of_the_sum_equally_strong(fuse: Fuse, models: Models) -> None:
    base, *tuned = models(1, SHAPE, 2, np.float64)
    total = sum(model - base for model in tuned)
    orthonormal, root = scipy.linalg.polar(total, side="left")
    expected = base + 1.5 * np.trace(root) / 12 * orthonormal
    np.testing.assert_allclose(fuse(IsoC(scale=1.5), base, *tuned), expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", [(40, 10), (4, 20)], ids=["unique", "many minima"])
def test_wudi_is_where_no_delta_disturbs_another(
    normalize: bool, shape: tuple[int, int], fuse: Fuse, models: Models
) -> None:
    base, *tuned = models(2, shape, 2, np.float64)
    deltas = [model - base for model in tuned]
    deltas[1] *= 3
    roots = [1 / np.linalg.norm(delta) if normalize else 1.0 for delta in deltas]
    # Least squares of the smallest norm: τ·δ_kᵀ is to be δ_k·δ_kᵀ for each model, weighted.
    inputs = np.concatenate([c * delta for c, delta in zip(roots, deltas, strict=True)])
    wanted = np.concatenate([c * delta @ delta.T for c, delta in zip(roots, deltas, strict=True)])
    expected = base + np.linalg.lstsq(inputs, wanted, rcond=None)[0].T
    found = fuse(Wudi(normalize=normalize, ridge=1e-9), base, *(base + delta for delta in deltas))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_authors_loss_has_no_slope_where_wudi_is(fuse: Fuse, models: Models) -> None:
    base, *tuned = models(3, (30, 6), 3, np.float64)
    deltas = torch.tensor(np.stack([model - base for model in tuned]))
    norms = deltas.square().sum((1, 2))[:, None, None]

    def slope(merged: torch.Tensor) -> float:
        merged = merged.clone().requires_grad_()
        (((merged - deltas) @ deltas.transpose(1, 2)).square() / norms).sum().backward()
        assert merged.grad is not None
        return float(merged.grad.norm())

    found = torch.tensor(fuse(Wudi(ridge=0), base, *tuned) - base)
    assert slope(found) < 1e-12 * slope(deltas.sum(0))


@spectral
def test_what_is_no_matrix_gets_the_mean_of_the_deltas(method: Method, fuse: Fuse, models: Models) -> None:
    for shape in ((9,), (2, 3, 4)):
        base, *tuned = models(4, shape, 2, np.float64)
        np.testing.assert_allclose(fuse(method, base, *tuned), np.mean(tuned, 0), rtol=1e-12)


@spectral
def test_stacked_experts_are_matrices_of_their_own(method: Method, fuse: Fuse, models: Models) -> None:
    base, *tuned = models(5, (3, *SHAPE), 2, np.float64)
    found = fuse(method, base, *tuned, name="layers.0.mlp.experts.down_proj")
    for k in range(3):
        np.testing.assert_array_equal(found[k], fuse(method, base[k], *(model[k] for model in tuned)))


@spectral
def test_directions_that_no_delta_has_stay_at_zero(method: Method, fuse: Fuse, models: Models) -> None:
    base = models(6, SHAPE, 0)[0]
    rng = np.random.default_rng(7)
    tuned = [base + (rng.standard_normal((12, 2)) @ rng.standard_normal((2, 20)) * 0.01).astype("f4") for _ in range(2)]
    values = np.linalg.svd(fuse(method, base, *tuned) - base)[1]
    assert values[4] < 1e-3 * values[0]


def test_a_model_that_did_not_change_a_matrix_has_no_share_of_it(fuse: Fuse, models: Models) -> None:
    base, *tuned = models(8, SHAPE, 2, np.float64)
    for method in SPECTRAL:
        without = fuse(method, base, *tuned, base.copy())
        np.testing.assert_allclose(without, fuse(method, base, *tuned), rtol=1e-9, atol=1e-12)


def test_deltas_that_leave_wudi_undetermined_want_a_ridge(fuse: Fuse, models: Models) -> None:
    base, *tuned = models(9, (3, 20), 2, np.float64)
    with pytest.raises(MethodError, match="`w` cannot be factorised") as caught:
        fuse(Wudi(ridge=0), base, *tuned)
    assert "ridge" in str(caught.value.hint)


def lines(
    base: dict[str, np.ndarray], tuned: Sequence[dict[str, np.ndarray]], alpha: float, beta: float, blocks: int
) -> dict[str, np.ndarray]:
    """Return what the released `line_scaling` makes of the mean of the task vectors."""
    strengths = {f".layers.{k}.": alpha + beta * (k / (blocks - 1)) for k in range(blocks)}
    found = {}
    for name, before in base.items():
        strength = next((value for part, value in strengths.items() if part in name), alpha)
        found[name] = before + strength * sum(0.5 * (model[name] - before) for model in tuned)
    return found


def test_lines_grows_from_the_first_layer_to_the_last() -> None:
    rng = np.random.default_rng(10)
    names = ["model.embed_tokens.weight", *(f"model.layers.{k}.mlp.up.weight" for k in range(11)), "lm_head.weight"]
    base, *tuned = [{name: rng.standard_normal((3, 4)) for name in names} for _ in range(3)]
    found = sculpt.apply(Lines(alpha=0.2, beta=0.7, weights=0.5), base, tuned)
    expected = lines(base, tuned, 0.2, 0.7, 11)
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)


def test_a_device_gives_what_the_definition_gives(fuse: Fuse, models: Models, torch_backend: Backend) -> None:
    base, *tuned = models(11, SHAPE, 2)
    for method in SPECTRAL:
        found = fuse(method, base, *tuned, backend=torch_backend)
        np.testing.assert_allclose(found, fuse(method, base, *tuned), rtol=1e-5, atol=1e-7)
