"""One tensor through a method, by the public `sculpt.apply`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import sculpt
from sculpt.fusion.methods import Method
from sculpt.fusion.run.backend import Backend, NumpyBackend, TorchBackend

Fuse = Callable[..., np.ndarray]


def fuse_array(
    method: Method,
    base: np.ndarray,
    *tuned: np.ndarray,
    curvature: Any = None,
    seed: int = 0,
    name: str = "w",
    tile_elements: int = 1 << 16,
    backend: Backend | None = None,
) -> np.ndarray:
    """Return the fused tensor, in the base's dtype; `curvature` is every model's, or a list has each one's."""
    known = curvature if isinstance(curvature, list) else [curvature] * len(tuned)
    return sculpt.apply(
        method,
        base,
        list(tuned),
        curvature=known,
        settings=sculpt.Settings(seed=seed),
        name=name,
        backend=backend or NumpyBackend(tile_elements=tile_elements),
    )


@pytest.fixture
def fuse() -> Fuse:
    """Return `fuse_array`."""
    return fuse_array


@pytest.fixture
def torch_backend() -> Backend:
    """Return the torch form of every method, on the CPU."""
    return TorchBackend("cpu", tile_elements=1 << 16)


def models(seed: int, shape: Sequence[int], num_tuned: int, dtype: object = np.float32) -> list[np.ndarray]:
    """Return a base and tuned models that differ from it by heavy-tailed noise, a ninth of it zero."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(shape) * 0.05
    found = [base]
    for _ in range(num_tuned):
        noise = rng.standard_t(3, shape) * 0.01
        noise.reshape(-1)[::9] = 0
        found.append(base + noise)
    return [array.astype(dtype) for array in found]


@pytest.fixture(name="models")
def _models() -> Callable[..., list[np.ndarray]]:
    return models
