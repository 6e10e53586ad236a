"""Tiles of every dtype and layout, for the kernels of CPUs and of devices."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.arithmetic.per_element import PerElement, Repeated
from sculpt.fusion.arithmetic.random import Key
from sculpt.fusion.arithmetic.tile import RawTile, root_curvature

BFLOAT16, FLOAT16, FLOAT32 = (np.dtype(found) for found in (ml_dtypes.bfloat16, np.float16, np.float32))
SIZES = (1, 4095, 4096, 4097, 100_000)
DTYPES = [
    pytest.param((BFLOAT16, BFLOAT16, BFLOAT16), id="bfloat16"),
    pytest.param((FLOAT16, FLOAT16, FLOAT16), id="float16"),
    pytest.param((FLOAT32, FLOAT32, FLOAT32), id="float32"),
    pytest.param((BFLOAT16, FLOAT16, FLOAT32), id="mixed"),
]
LAYOUTS = [
    pytest.param(None, id="no-curvature"),
    pytest.param((100, 2048), id="columns"),
    pytest.param((64, 1), id="rows"),
    pytest.param((1, 7), id="own"),
    pytest.param((3, 37), id="ragged"),
    pytest.param((0, 37), id="tied"),
]
START = 5 * 4096

Dtypes = tuple[np.dtype, np.dtype, np.dtype]


def make_tile(
    dtypes: Dtypes, size: int, layout: tuple[int, int] | None = None, start: int = START, num_models: int = 1
) -> RawTile:
    """Return a tile with a share of zero deltas, of huge and of tiny ones."""
    rng = np.random.default_rng(size)
    base = (rng.standard_normal(size) * 0.02).astype(dtypes[0])
    tuned = []
    for _ in range(num_models):
        delta = rng.standard_normal(size) * rng.choice([0.0, 1e-3, 1e-3, 1e-3, 1e-6, 0.1], size)
        tuned.append((base.astype(np.float32) + delta.astype(np.float32)).astype(dtypes[1]))
    root = None
    if layout is not None:
        repeat, inner = layout
        outer = -(-(start + size) // (max(1, repeat) * inner))
        values = np.exp(rng.standard_normal(outer * inner)).astype(np.float32) + 1
        root = Repeated(values=values, repeat=repeat, inner=inner) if repeat else tied(values[:outer], values[:inner])
    keys = tuple(Key(low=2**32 - 999 * k, high=0xDEADBEEF + k) for k in range(1, num_models + 1))
    return RawTile(start=start, base=base, tuned=tuple(tuned), keys=keys, root=root)


def tied(rows: np.ndarray, columns: np.ndarray) -> PerElement:
    """Return `sqrt(H)` of a tied embedding."""
    found = Curvature(terms=(rows[:, None].astype("f8"), columns[None].astype("f8")), num_tokens=1)
    return root_curvature("embedding", found, (len(rows), len(columns)))


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two arrays are equal bit for bit, a negative zero told from a zero."""
    return one.dtype == other.dtype and np.array_equal(one.view(np.uint8), other.view(np.uint8))
