"""What is added to the task's loss: LoRASculpt's regulariser, and the two that it is compared with.

A term is called with the model and returns its parts by name, each a scalar that can be differentiated and already has
its strength: the loss is the sum of the task's and of all parts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final, get_args

import torch
from torch import Tensor

from ..fusion.errors import MethodError
from ..fusion.methods.checks import at_least_zero, one_of
from .layers import AdaptedLayer, adapted_layers, matches, whole
from .regulariser import conflict
from .settings import Layers

# Where attention asks, answers and gives: the names that models have for q, k and v, apart or in one.
QKV = (
    *("q_proj", "k_proj", "v_proj", "qkv_proj", "query", "key", "value", "query_key_value"),
    *("c_attn", "qkv", "Wqkv", "q", "k", "v"),
)


class Term(ABC):
    """Something to add to the loss of one model."""

    def __init__(self) -> None:
        self._model: Any = None
        self._layers: list[AdaptedLayer] = []

    def __call__(self, model: Any) -> Mapping[str, Tensor]:
        """Return the parts of the term, by their names in the log.

        Raises:
            ModelError: The model has no LoRA, or a weight that cannot be read.
        """
        if model is not self._model:
            self._layers, self._model = adapted_layers(model), model
            self._bind(self._layers)
        return self._parts(self._layers)

    def _bind(self, layers: Sequence[AdaptedLayer]) -> None:  # noqa: B027 (most terms have nothing to find out)
        """Look at the layers of a model that was not seen before."""

    @abstractmethod
    def _parts(self, layers: Sequence[AdaptedLayer]) -> Mapping[str, Tensor]: ...


@final
class ConflictTerm(Term):
    """α·Σ ‖M∘BA‖_F over the layers of q, k and v, and β·Σ ‖M∘BA‖_1 over the connector's: see `conflict`.

    Args:
        alpha: α.
        beta: β.
        omega: ω.
        layers: `sum`, as in the paper's Algorithm 1, or `mean` over the layers of each kind. The released code divides
            by the number of all of them together.
        modules: Which layers the first is of, by globs of their names or by the names' last part.
        connector: Which layers the second is of; they are left out of the first.
    """

    def __init__(
        self,
        *,
        alpha: float = 1e-3,
        beta: float = 1e-5,
        omega: float = 1.0,
        layers: Layers = "sum",
        modules: Sequence[str] = QKV,
        connector: Sequence[str] = (),
    ) -> None:
        super().__init__()
        at_least_zero("alpha", alpha)
        at_least_zero("beta", beta)
        at_least_zero("omega", omega)
        if omega == 0:
            raise MethodError(
                "with an omega of 0 the regulariser has no effect",
                hint="an alpha and a beta of 0 switch the regulariser off",
            )
        one_of("layers", layers, get_args(Layers))
        self.alpha, self.beta, self.omega, self.layers = alpha, beta, omega, layers
        self.modules, self.connector = tuple(modules), tuple(connector)
        self._groups: dict[str, list[AdaptedLayer]] = {}

    def _bind(self, layers: Sequence[AdaptedLayer]) -> None:
        connector = [layer for layer in layers if matches(layer.name, self.connector)]
        guarded = [layer for layer in layers if layer not in connector and matches(layer.name, self.modules)]
        if self.alpha and not guarded:
            raise MethodError(
                "none of the adapted modules is one of q, k and v, which the regulariser is for",
                hint="name others with `guard`, or switch it off with an `alpha` of 0",
                options=["guard", "alpha"],
            )
        if self.connector and not connector:
            raise MethodError(f"no adapted module matches the connector {', '.join(f'`{c}`' for c in self.connector)}")
        self._groups = {"cmr": guarded if self.alpha else [], "connector": connector if self.beta else []}

    def _parts(self, layers: Sequence[AdaptedLayer]) -> Mapping[str, Tensor]:
        del layers
        kinds = {"cmr": (self.alpha, "frobenius"), "connector": (self.beta, "l1")}
        parts: dict[str, Tensor] = {}
        for name, group in self._groups.items():
            strength, form = kinds[name]
            norms = [
                conflict(layer.weight(), whole(layer.a), whole(layer.b), omega=self.omega, form=form)  # pyright: ignore[reportArgumentType]
                for layer in group
            ]
            if norms:
                stacked = torch.stack(norms)
                parts[name] = strength * (stacked.sum() if self.layers == "sum" else stacked.mean())
        return parts


@final
class L2Term(Term):
    """λ·Σ ‖s·BA‖_F² over all layers: the squared distance that the weights have moved.

    From `‖BA‖_F² = ⟨BᵀB, AAᵀ⟩`, so that no BA is formed. The source names L2 regularisation and its strength, 1e-3; the
    form is the usual one, of the distance to the weights of the base.
    """

    def __init__(self, strength: float = 1e-3) -> None:
        super().__init__()
        at_least_zero("strength", strength)
        self.strength = strength

    def _parts(self, layers: Sequence[AdaptedLayer]) -> Mapping[str, Tensor]:
        squares = []
        for layer in layers:
            a, b = (whole(factor).flatten(1).float() for factor in (layer.a, layer.b))
            squares.append(layer.scaling**2 * torch.sum((b.T @ b) * (a @ a.T)))
        return {"l2": self.strength * torch.stack(squares).sum()}


@final
class OrthogonalTerm(Term):
    """λ·Σ ‖(W/‖W‖_F)·Aᵀ‖_F² over all linear layers: A is to read from directions that the base's W does not.

    The source names orthogonal regularisation and its strength, 1e-3, and not its form. This is O-LoRA's (Wang et al.
    2023, arXiv:2310.14152), which keeps a task's A orthogonal to those of earlier tasks, with the base's weights in the
    place of an earlier task.
    """

    def __init__(self, strength: float = 1e-3) -> None:
        super().__init__()
        at_least_zero("strength", strength)
        self.strength = strength

    def _parts(self, layers: Sequence[AdaptedLayer]) -> Mapping[str, Tensor]:
        squares = []
        for layer in layers:
            if layer.a.ndim != 2:
                continue
            weight = layer.weight()
            read = (weight @ whole(layer.a).T.to(weight.dtype)).float()
            norm = torch.linalg.vector_norm(weight, dtype=torch.float32).clamp(min=torch.finfo(torch.float32).tiny)
            squares.append(torch.sum(torch.square(read / norm)))
        return {"orth": self.strength * torch.stack(squares).sum()} if squares else {}
