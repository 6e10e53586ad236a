"""One tensor through a method, as the run does it, without files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.arithmetic.group import Group
from sculpt.fusion.arithmetic.matrices import Matrices
from sculpt.fusion.arithmetic.passes import Pass
from sculpt.fusion.arithmetic.random import tensor_key
from sculpt.fusion.arithmetic.tile import RawTile, root_curvature
from sculpt.fusion.methods import Method
from sculpt.fusion.run.backend import Backend, NumpyBackend, TorchBackend
from sculpt.fusion.run.task import spans

Fuse = Callable[..., np.ndarray]


def fuse_array(
    method: Method,
    base: np.ndarray,
    *tuned: np.ndarray,
    curvature: Curvature | None = None,
    seed: int = 0,
    name: str = "w",
    tile_elements: int = 1 << 16,
    backend: Backend | None = None,
) -> np.ndarray:
    """Return the fused tensor, in the base's dtype."""
    bound = method.for_models(len(tuned))
    if not base.size:
        return base.copy()  # the run has no spans to hand out
    backend = backend or NumpyBackend()
    group = Group(name=name, shape=base.shape, curvatures=(None, *[curvature] * len(tuned)))
    root = None
    if bound.uses_curvature and curvature is not None and curvature.terms:
        root = root_curvature(name, curvature, base.shape)
    region = bound.region(group)
    grain = group.row_length if region == "row" else 1
    flat = [model.reshape(-1) for model in (base, *tuned)]
    if region == "matrix":
        matrices = Matrices(group, lambda start, stop: [a[start:stop] for a in flat], place=backend.place)
        prepared = bound.matrix(matrices)
    else:
        prepared = bound.prepare(group)
    keys = tuple(tensor_key(seed, name, stream=k) for k in range(len(tuned)))
    tiles = [
        RawTile(
            start=span.start,
            base=flat[0][span.start : span.stop],
            tuned=tuple(t[span.start : span.stop] for t in flat[1:]),
            keys=keys,
            root=root,
            grain=grain,
            prepared=prepared,
        )
        for span in spans(0, base.size, tile_elements, grain)
    ]
    reduction = bound.reduce(base.size)
    value = None
    try:
        while True:
            wanted = reduction.send(value)
            assert isinstance(wanted, Pass)
            value = wanted.combine([backend.run_pass(tile, wanted) for tile in tiles])
    except StopIteration as end:
        found = end.value
    out = np.empty(base.size, base.dtype)
    for tile in tiles:
        backend.run_map(tile, found, out[tile.start : tile.start + len(tile.base)])
    return out.reshape(base.shape)


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
