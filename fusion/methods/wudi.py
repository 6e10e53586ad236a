"""WUDI: one delta that differs from each model's as little as can be where that model's own delta goes.

    min_τ Σ_k ‖(τ − δ_k)·δ_kᵀ‖²/‖δ_k‖²
    ⇒  W = W_pre + λ·τ,       τ = (Σ_k c_k·δ_k·δ_kᵀδ_k)·(Σ_k c_k·δ_kᵀδ_k + ρ·I)⁻¹,       c_k = 1/‖δ_k‖²

Cheng et al., Whoever Started the Interference Should End It, ICML 2025 (arXiv:2503.08099), who take 300 steps of Adam
from the sum of the deltas towards this minimum. ρ, a small fraction of the mean diagonal, makes it unique: directions
that no delta has stay at zero, as they do for gradients. Without `normalize` c_k = 1, which is RegMean with δᵀδ for
each model's inputs, as in Hameed et al., Model Merging via Data-Free Covariance Estimation (arXiv:2604.01329). Inputs
are along a matrix's last axis. What is no matrix gets the mean of the deltas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..arithmetic.from_delta import delta_moment
from ..arithmetic.gram import cholesky, divided
from ..device import float64_device
from .by_matrix import ByMatrix
from .checks import at_least_zero


@dataclass(frozen=True, kw_only=True)
class Wudi(ByMatrix):
    """Merge the deltas so that they disturb each other little, in closed form and without data.

    Attributes:
        scale: λ, the strength of the merged delta.
        normalize: Weight each model by 1/‖δ‖², so that no model counts more because it moved further.
        ridge: ρ, as a fraction of the mean diagonal.
    """

    normalize: bool = True
    ridge: float = 1e-6

    name: ClassVar[str] = "wudi"
    title: ClassVar[str] = "WUDI"
    source: ClassVar[str] = "arXiv:2503.08099"
    bytes_per_element: ClassVar[int] = 48
    bytes_per_input_pair: ClassVar[int] = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_zero("ridge", self.ridge)

    def merged(self, name: str, deltas: list[Any]) -> Any:
        """Return τ."""

        dtype, place = deltas[0].dtype, deltas[0].device
        exact = float64_device(place)
        total: Any = None
        wanted: Any = None
        while deltas:
            delta = deltas.pop(0).to(exact)
            moment = delta_moment([delta])
            if self.normalize:
                moment /= moment.trace()
            found = delta.double() @ moment
            wanted = found if wanted is None else wanted.add_(found)
            total = moment if total is None else total.add_(moment)
        total.diagonal().add_(self.ridge * total.diagonal().mean())
        factor = cholesky(name, total, hint="a larger ridge makes it positive definite")
        return divided(wanted, factor, dtype).to(place)
