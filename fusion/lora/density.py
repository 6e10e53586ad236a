"""How dense B·A is: counted, and as the densities of A and B let expect.

    E[s_BA] = 1 − (1 − s_A·s_B)^r                                    (Theorem 3.1)
    P(|s_BA − E[s_BA]| ≥ t) ≤ 2·exp(−2t²·p·q/(r·(p + q)))            (Theorem 3.2)

Liang et al., LoRASculpt, CVPR 2025 (arXiv:2503.16843), for A (r, q) and B (p, r) whose non-zeros lie anywhere with
equal probability. What training keeps does not: it gathers in the rows and columns that matter, so B·A may lie beyond
the bound. "Density" is the fraction of non-zeros, which the paper calls sparsity.

An entry of B·A counts where any of its r terms is non-zero. A sum that cancels to an exact zero counts too: so the
count is one of patterns, the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ..errors import MethodError
from ..progress import Progress, silent
from .pairs import LoneAdapter

TILE_ELEMENTS = 1 << 22  # of B·A at once
PROBABILITY = 0.05  # of lying outside the bound that is reported


def count_of_product(b: Any, a: Any) -> int:
    """Return how many entries of `b @ a` have a non-zero term.

    Args:
        b: (d_out, r), of NumPy or torch; on any device.
        a: (r, d_in).
    """
    xp = array_namespace(a, b)
    right = xp.astype(a != 0, xp.float32)
    height = max(1, TILE_ELEMENTS // a.shape[1])
    total = 0
    for start in range(0, b.shape[0], height):
        terms = xp.astype(b[start : start + height] != 0, xp.float32) @ right
        total += int(xp.count_nonzero(terms > 0.5))
    return total


def expected_density(density_a: float, density_b: float, rank: int) -> float:
    """Return E[s_BA] of Theorem 3.1."""
    return 1 - (1 - density_a * density_b) ** rank


def density_bound(rank: int, d_out: int, d_in: int, probability: float = PROBABILITY) -> float:
    """Return the t of Theorem 3.2 beyond which s_BA lies from its expectation with at most this probability."""
    if not 0 < probability < 1:
        raise MethodError(f"the probability must lie between 0 and 1, got {probability:g}")
    return math.sqrt(rank * (d_out + d_in) * math.log(2 / probability) / (2 * d_out * d_in))


@dataclass(frozen=True, kw_only=True)
class LayerDensity:
    """One module.

    Attributes:
        name: In the model.
        rank, d_out, d_in: Of its factors.
        density_a, density_b, density: Fractions of non-zeros of A, of B and of B·A.
        expected: By Theorem 3.1.
        bound: The distance from it that chance exceeds in at most `PROBABILITY` of the cases.
    """

    name: str
    rank: int
    d_out: int
    d_in: int
    density_a: float
    density_b: float
    density: float
    expected: float
    bound: float

    @property
    def within(self) -> bool:
        """Whether the bound holds."""
        return abs(self.density - self.expected) <= self.bound


@dataclass(frozen=True, kw_only=True)
class AdapterDensity:
    """A whole adapter."""

    adapter: Path
    layers: tuple[LayerDensity, ...]

    @property
    def density(self) -> float:
        """Fraction of non-zeros over all entries of all B·A."""
        return self._mean("density")

    @property
    def expected(self) -> float:
        """What Theorem 3.1 expects of `density`."""
        return self._mean("expected")

    def _mean(self, name: str) -> float:
        sizes = [layer.d_out * layer.d_in for layer in self.layers]
        return sum(getattr(layer, name) * size for layer, size in zip(self.layers, sizes, strict=True)) / sum(sizes)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "adapter": str(self.adapter),
            "density": self.density,
            "expected": self.expected,
            "probability": PROBABILITY,
            "layers": [{**asdict(layer), "within": layer.within} for layer in self.layers],
        }


def adapter_density(folder: Path, *, report: Progress = silent) -> AdapterDensity:
    """Return the densities of an adapter, module by module; no base is needed, and never two B·A are in memory.

    Raises:
        CheckpointError: The folder holds no LoRA adapter.
    """
    adapter = LoneAdapter(folder)
    layers = []
    for done, pair in enumerate(adapter.pairs):
        report(done, len(adapter.pairs), pair.name)
        a, b = adapter.factors(pair)
        experts, rank, d_in = a.shape
        d_out = b.shape[1]
        density_a, density_b = (float(np.count_nonzero(factor)) / factor.size for factor in (a, b))
        count = sum(count_of_product(b[k], a[k]) for k in range(experts))
        layers.append(
            LayerDensity(
                name=pair.name,
                rank=rank,
                d_out=d_out,
                d_in=d_in,
                density_a=density_a,
                density_b=density_b,
                density=count / (experts * d_out * d_in),
                expected=expected_density(density_a, density_b, rank),
                bound=density_bound(rank, d_out, d_in),
            )
        )
    return AdapterDensity(adapter=folder, layers=tuple(layers))
