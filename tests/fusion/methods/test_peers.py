"""Against released code: PEFT's merge_utils (0.21), and MergeLM's published formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft.utils import merge_utils
from sculpt.fusion.arithmetic.tile import Tile
from sculpt.fusion.methods import METHODS, Dare, DareTies, Magnitude, TaskArithmetic

Fuse = Callable[..., np.ndarray]
Models = Callable[..., list[np.ndarray]]
SHAPE = (40, 30)
WEIGHTS = (1.0, 0.6, -0.3)


def deltas(base: np.ndarray, tuned: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(t - base) for t in tuned]


def close(ours: np.ndarray, base: np.ndarray, theirs: torch.Tensor) -> None:
    np.testing.assert_allclose(ours, base + theirs.numpy(), rtol=1e-6, atol=1e-7)


def with_masks(monkeypatch: pytest.MonkeyPatch, density: float) -> Callable[..., torch.Tensor]:
    """Make PEFT draw from our stream of masks, and ours from the same."""
    masks = [np.random.default_rng(k).random(SHAPE) < density for k in range(len(WEIGHTS))]
    drawn = iter(masks)

    def draw(tile: Tile, keep: Any, model: int = 0) -> np.ndarray:
        return masks[model].reshape(-1)[tile.start : tile.start + len(tile.base)]

    monkeypatch.setattr(Tile, "draw", draw)
    monkeypatch.setattr(torch, "bernoulli", lambda full: torch.from_numpy(next(drawn)).to(full.dtype))
    return torch.bernoulli


def test_task_arithmetic_is_pefts(fuse: Fuse, models: Models) -> None:
    base, *tuned = models(0, SHAPE, 3)
    theirs = merge_utils.task_arithmetic(deltas(base, tuned), torch.tensor(WEIGHTS))
    close(fuse(TaskArithmetic(weights=WEIGHTS), base, *tuned), base, theirs)


@pytest.mark.parametrize("density", [0.1, 0.37, 0.9])
def test_magnitude_trim_is_pefts(density: float, fuse: Fuse, models: Models) -> None:
    base, *tuned = models(1, SHAPE, 3)
    theirs = merge_utils.magnitude_prune(deltas(base, tuned), torch.tensor(WEIGHTS), density)
    close(fuse(Magnitude(density=density, weights=WEIGHTS), base, *tuned), base, theirs)


@pytest.mark.parametrize("density", [0.1, 0.37, 0.9])
def test_ties_with_an_unweighted_election_is_pefts(density: float, fuse: Fuse, models: Models) -> None:
    base, *tuned = models(2, SHAPE, 3)
    theirs = merge_utils.ties(deltas(base, tuned), torch.tensor(WEIGHTS), density)
    close(fuse(METHODS["ties"](density=density, weights=WEIGHTS, election="unweighted"), base, *tuned), base, theirs)  # pyright: ignore[reportCallIssue]


def test_dare_over_several_models_is_pefts(fuse: Fuse, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    base, *tuned = models(3, SHAPE, 3)
    with_masks(monkeypatch, 0.4)
    theirs = merge_utils.dare_linear(deltas(base, tuned), torch.tensor(WEIGHTS), 0.4)
    close(fuse(Dare(sparsity=0.6, weights=WEIGHTS), base, *tuned), base, theirs)


def test_dare_ties_with_an_unweighted_election_is_pefts(
    fuse: Fuse, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, *tuned = models(4, SHAPE, 3)
    with_masks(monkeypatch, 0.4)
    theirs = merge_utils.dare_ties(deltas(base, tuned), torch.tensor(WEIGHTS), 0.4)
    close(fuse(DareTies(sparsity=0.6, weights=WEIGHTS, election="unweighted"), base, *tuned), base, theirs)


@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_dare_of_one_model_is_mergelms(
    rate: float, fuse: Fuse, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MergeLM's `mask_input_with_mask_rate` in float32: `δ·(1 − mask)/(1 − mask_rate)`, then added to the base."""
    base, tuned = models(5, SHAPE, 1)
    mask = np.random.default_rng(6).random(SHAPE) < rate
    monkeypatch.setattr(Tile, "draw", lambda *_, **__: ~mask.reshape(-1))
    expected = base + (tuned - base) * (1 - mask.astype(np.float32)) / np.float32(1 - rate)
    np.testing.assert_allclose(fuse(Dare(sparsity=rate), base, tuned), expected, rtol=1e-6, atol=1e-7)
