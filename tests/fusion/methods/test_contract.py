"""What every method keeps, whatever it does: the same tests for all of METHODS."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import ml_dtypes
import numpy as np
import pytest
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.methods import (
    METHODS,
    AdaDare,
    ArceeFusion,
    Breadcrumbs,
    BreadcrumbsTies,
    Dare,
    DareTies,
    Della,
    DellaLinear,
    Fisher,
    IsoC,
    Karcher,
    Linear,
    Lines,
    Magnitude,
    Method,
    ModelStock,
    MultiSlerp,
    NearSwap,
    NuSlerp,
    Passthrough,
    RegMean,
    Saliency,
    Sce,
    Slerp,
    Tailor,
    TaskArithmetic,
    Ties,
    TsvM,
    Wudi,
)
from sculpt.fusion.run.backend import Backend, TorchBackend

Fuse = Callable[..., np.ndarray]
Models = Callable[..., list[np.ndarray]]
Device = Callable[[], AbstractContextManager[str]]
SHAPE = (24, 96)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# An instance that does something, the number of tuned models, and an instance of strength 0 where there is such.
# Methods that are not among them are tested as they are by default.
CASES: list[tuple[Method, int, Method | None]] = [
    (AdaDare(gamma=0.7, sparsity=0.8), 1, AdaDare(gamma=0)),
    (AdaDare(gamma=0.7, sparsity=0.5, allocation="exact"), 1, AdaDare(gamma=0, allocation="exact")),
    (AdaDare(gamma=0.7, sparsity=0.5, eta_relative=0.05), 1, AdaDare(eta=0)),
    (Dare(sparsity=0.5), 1, Dare(scale=0)),
    (Dare(sparsity=(0.5, 0.7, 0.9), weights=(1, 0.5, -0.2)), 3, Dare(weights=0)),
    (Dare(sparsity=0.5, rescale="l1"), 2, Dare(scale=0, rescale="l1")),
    (Dare(sparsity=0.5, rescale="none"), 1, Dare(sparsity=1, rescale="none")),
    (DareTies(sparsity=0.5), 3, DareTies(scale=0)),
    (DareTies(sparsity=0.5, election="unweighted", normalize=False, weights=(1, 2)), 2, DareTies(sparsity=1)),
    (ArceeFusion(), 1, None),
    (Breadcrumbs(density=0.5, gamma=0.1), 1, Breadcrumbs(scale=0)),
    (Breadcrumbs(density=(0.5, 0.3), gamma=0.05, weights=(1, 0.5), rescale="l1"), 2, Breadcrumbs(density=0)),
    (BreadcrumbsTies(density=0.5, gamma=(0.1, 0, 0.2)), 3, BreadcrumbsTies(weights=0)),
    (Della(density=0.4), 3, Della(density=0)),
    (Della(density=0.4, rescale="l1", normalize=False), 2, Della(scale=0)),
    (DellaLinear(density=0.4, epsilon=0.3), 1, DellaLinear(scale=0)),
    (DellaLinear(density=(0.4, 0.6), rescale="none", weights=(1, 2)), 2, DellaLinear(weights=0)),
    (Fisher(weights=(1, 2)), 2, None),
    (IsoC(scale=0.7), 2, IsoC(scale=0)),
    (Karcher(), 2, Karcher(weights=(1, 0, 0))),
    (Linear(weights=(3, 1, 1)), 2, Linear(weights=(1, 0, 0))),
    (Lines(alpha=0.3, beta=0.6, weights=(1, 0.5)), 2, Lines(alpha=0, beta=0)),
    (Magnitude(density=0.2), 1, Magnitude(density=0)),
    (Magnitude(density=(0.2, 0.9), weights=(1, -0.5), rescale="l1"), 2, Magnitude(scale=0)),
    (ModelStock(), 3, None),
    (ModelStock(filter_wise=True), 2, None),
    (MultiSlerp(weights=(1, 2, 3)), 3, None),
    (MultiSlerp(origin="zero"), 1, None),
    (NearSwap(t=0.005), 1, NearSwap(t=0)),
    (NuSlerp(weights=(1, 3)), 2, None),
    (NuSlerp(vectors="rows"), 2, None),
    (NuSlerp(vectors="columns", origin="zero"), 1, NuSlerp(vectors="columns", origin="zero", weights=(1, 0))),
    (Passthrough(), 0, Passthrough()),
    (RegMean(weights=(1, 2)), 2, None),
    (RegMean(alpha=1), 3, None),
    (Saliency(density=0.3, scale=0.7), 1, Saliency(scale=0)),
    (Sce(density=0.3), 3, Sce(density=0)),
    (Sce(density=1), 2, Sce(density=0)),
    (Slerp(t=0.3), 1, Slerp(t=0)),
    (Tailor(sparsity=0.8, block_size=32), 1, Tailor(sparsity=1)),
    (TaskArithmetic(scale=0.3), 1, TaskArithmetic(scale=0)),
    (TaskArithmetic(weights=(0.6, 0.6), normalize=True), 2, TaskArithmetic(weights=0)),
    (Ties(density=0.3), 3, Ties(scale=0)),
    (Ties(density=(0.4, 0.2), weights=(1, 0.5), election="unweighted", scale=0.7), 2, Ties(weights=0)),
    (Ties(density=0.3), 1, Ties(density=0)),
    (TsvM(scale=0.7), 3, TsvM(scale=0)),
    (Wudi(scale=0.7), 2, Wudi(scale=0)),
    (Wudi(normalize=False), 3, None),
]
CASES += [
    (method(), max(2, method.min_models) if method.max_models is None else method.min_models, None)
    for method in METHODS.values()
    if not any(type(case) is method for case, _, _ in CASES)
]
IDS = [f"{i}-{method.name}" for i, (method, _, _) in enumerate(CASES)]
every = pytest.mark.parametrize(("method", "num_tuned", "nothing"), CASES, ids=IDS)


def curvature(shape: tuple[int, ...] = SHAPE, seed: int = 5) -> Curvature:
    """Return the statistics of a linear layer: 200 tokens, correlated inputs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, shape[-1])) @ (rng.standard_normal((shape[-1], shape[-1])) * 0.3)
    return Curvature(terms=((x * x).sum(0)[None, :],), num_tokens=200, gram=x.T @ x)


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


def test_the_name_of_a_method_is_that_of_its_file() -> None:
    for name, method in METHODS.items():
        assert method.__module__.rsplit(".", 1)[-1].replace("_", "-") == name


@every
@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)])
def test_without_a_delta_the_base_comes_back(
    method: Method, num_tuned: int, nothing: Method | None, dtype: np.dtype, fuse: Fuse, models: Models
) -> None:
    base = models(1, SHAPE, 0, dtype)[0]
    base[0, :3] = -0.0
    assert same(fuse(method, base, *[base.copy()] * num_tuned, curvature=curvature()), base)


@every
@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float32)])
def test_strength_zero_gives_the_bits_of_the_base(
    method: Method, num_tuned: int, nothing: Method | None, dtype: np.dtype, fuse: Fuse, models: Models
) -> None:
    if nothing is None:
        pytest.skip("no option of this method is a strength")
    base, *tuned = models(2, SHAPE, num_tuned, dtype)
    base[0, :3] = -0.0
    assert same(fuse(nothing, base, *tuned, curvature=curvature()), base)


@every
def test_seed_alone_decides_the_bits(
    method: Method, num_tuned: int, nothing: Method | None, fuse: Fuse, models: Models
) -> None:
    base, *tuned = models(3, SHAPE, num_tuned)
    first = fuse(method, base, *tuned, curvature=curvature())
    assert same(first, fuse(method, base, *tuned, curvature=curvature()))
    assert same(first, fuse(method, base, *tuned, curvature=curvature(), seed=1)) != method.random
    assert same(first, fuse(method, base, *tuned, curvature=curvature(), name="other")) != method.random


@every
@pytest.mark.parametrize("tile_elements", [7, 1000])
def test_tile_size_changes_no_bit(
    method: Method, num_tuned: int, nothing: Method | None, tile_elements: int, fuse: Fuse, models: Models
) -> None:
    base, *tuned = models(4, SHAPE, num_tuned, BFLOAT16)
    whole = fuse(method, base, *tuned, curvature=curvature())
    assert same(whole, fuse(method, base, *tuned, curvature=curvature(), tile_elements=tile_elements))


@every
@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float32)])
def test_torch_gives_the_bits_of_numpy(
    method: Method,
    num_tuned: int,
    nothing: Method | None,
    dtype: np.dtype,
    fuse: Fuse,
    models: Models,
    torch_backend: Backend,
) -> None:
    base, *tuned = models(5, SHAPE, num_tuned, dtype)
    ours = fuse(method, base, *tuned, curvature=curvature())
    assert same(ours, fuse(method, base, *tuned, curvature=curvature(), backend=torch_backend))


@every
@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float64)])
def test_a_device_without_float64_gives_the_bits_of_others(
    method: Method,
    num_tuned: int,
    nothing: Method | None,
    dtype: np.dtype,
    fuse: Fuse,
    models: Models,
    torch_backend: Backend,
    device_without_float64: Device,
) -> None:
    base, *tuned = models(5, SHAPE, num_tuned, dtype)
    ours = fuse(method, base, *tuned, curvature=curvature(), backend=torch_backend)
    with device_without_float64() as device:
        theirs = fuse(method, base, *tuned, curvature=curvature(), backend=TorchBackend(device))
    assert same(ours, theirs)


@every
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 1), (1, 5), (4, 6, 8), (0, 3)])
def test_any_shape_stays_finite(
    method: Method, num_tuned: int, nothing: Method | None, shape: tuple[int, ...], fuse: Fuse, models: Models
) -> None:
    base, *tuned = models(6, shape, num_tuned)
    fused = fuse(method, base, *tuned)
    assert fused.shape == shape
    assert np.isfinite(fused).all()


@every
def test_it_does_something(method: Method, num_tuned: int, nothing: Method | None, fuse: Fuse, models: Models) -> None:
    if num_tuned == 0:
        pytest.skip("as it is")
    base, *tuned = models(7, SHAPE, num_tuned)
    assert not same(fuse(method, base, *tuned, curvature=curvature()), base)


@every
def test_the_wrong_number_of_models_is_refused(method: Method, num_tuned: int, nothing: Method | None) -> None:
    from sculpt.fusion.errors import MethodError

    refused = [n for n in (0, 9) if n < method.min_models or (method.max_models is not None and n > method.max_models)]
    for number in refused:
        with pytest.raises(MethodError, match="takes"):
            method.for_models(number)
