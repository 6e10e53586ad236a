"""mergekit's methods and parameters as ours.

mergekit's `rescale: true` matches the L1 norm that the deltas had before; the papers, and we, divide by the keep
probability. `rescale: l1` asks for mergekit's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..methods import METHODS, Method
from .recipe import Parameter


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One method of mergekit.

    Attributes:
        method: Ours.
        parameters: Those that its recipes may have.
        defaults: Options of ours that mergekit has by another default.
        adjust: Makes options of ours of what the parameters gave.
        needs_base: Whether mergekit asks for a `base_model`.
    """

    method: type[Method]
    parameters: tuple[Parameter, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    adjust: Callable[[dict[str, Any]], dict[str, Any]] = dict
    needs_base: bool = True


def _rescale(value: bool | str) -> str:
    return value if isinstance(value, str) else "probability" if value else "none"


def _norm(value: bool | str) -> str:
    return value if isinstance(value, str) else "l1" if value else "none"


WEIGHT = Parameter(name="weight", option="weights", per_model=True, required=True, convert=float)
DENSITY = Parameter(name="density", option="density", per_model=True, convert=float)
SPARSITY = Parameter(name="density", option="sparsity", per_model=True, convert=lambda density: 1 - float(density))
RESCALE = Parameter(name="rescale", option="rescale", convert=_rescale)
NORM = Parameter(name="rescale", option="rescale", convert=_norm)
DELTAS = (
    WEIGHT,
    Parameter(name="lambda", option="scale", convert=float),
    Parameter(name="normalize", option="normalize", convert=bool),
    Parameter(name="int8_mask", option=None),
)
NO_DENSITY = Parameter(name="density", option=None, per_model=True)
NO_RESCALE = Parameter(name="rescale", option=None)
GAMMA = Parameter(name="gamma", option="gamma", per_model=True, convert=float)
EPSILON = Parameter(name="epsilon", option="epsilon", per_model=True, convert=float)


def _vectors(options: dict[str, Any]) -> dict[str, Any]:
    """Put NuSLERP's two switches into one option; mergekit's `row_wise` runs along the first axis."""
    flatten, row_wise = options.pop("flatten", True), options.pop("row_wise", False)
    return {**options, "vectors": "tensor" if flatten else "columns" if row_wise else "rows"}


DIALECTS = {
    "arcee_fusion": Dialect(method=METHODS["arcee-fusion"], parameters=()),
    "breadcrumbs": Dialect(
        method=METHODS["breadcrumbs"],
        parameters=(*DELTAS, DENSITY, GAMMA, NORM),
        defaults={"gamma": 0.01, "density": 1.0},
    ),
    "breadcrumbs_ties": Dialect(
        method=METHODS["breadcrumbs-ties"],
        parameters=(*DELTAS, DENSITY, GAMMA, NORM),
        defaults={"gamma": 0.01, "density": 1.0, "normalize": False},
    ),
    "dare_linear": Dialect(method=METHODS["dare"], parameters=(*DELTAS, SPARSITY, RESCALE), defaults={"sparsity": 0.0}),
    "dare_ties": Dialect(
        method=METHODS["dare-ties"],
        parameters=(*DELTAS, SPARSITY, RESCALE),
        defaults={"sparsity": 0.0, "normalize": False},
    ),
    "della": Dialect(
        method=METHODS["della"],
        parameters=(*DELTAS, DENSITY, EPSILON, RESCALE),
        defaults={"density": 1.0, "epsilon": 0.15},
    ),
    "della_linear": Dialect(
        method=METHODS["della-linear"],
        parameters=(*DELTAS, DENSITY, EPSILON, RESCALE),
        defaults={"density": 1.0, "epsilon": 0.15},
    ),
    "karcher": Dialect(
        method=METHODS["karcher"],
        parameters=(
            Parameter(name="max_iter", option="max_steps", convert=int),
            Parameter(name="tol", option="tolerance", convert=float),
        ),
        needs_base=False,
    ),
    "linear": Dialect(
        method=METHODS["linear"],
        parameters=(WEIGHT, Parameter(name="normalize", option="normalize", convert=bool)),
        needs_base=False,
    ),
    "model_stock": Dialect(
        method=METHODS["model-stock"],
        parameters=(Parameter(name="filter_wise", option="filter_wise", convert=bool),),
    ),
    "multislerp": Dialect(
        method=METHODS["multislerp"],
        parameters=(
            WEIGHT,
            Parameter(name="normalize_weights", option="normalize", convert=bool),
            Parameter(name="eps", option=None),
        ),
        needs_base=False,
    ),
    "nearswap": Dialect(method=METHODS["nearswap"], parameters=(Parameter(name="t", option="t", convert=float),)),
    "nuslerp": Dialect(
        method=METHODS["nuslerp"],
        parameters=(
            WEIGHT,
            Parameter(name="nuslerp_flatten", option="flatten", convert=bool),
            Parameter(name="nuslerp_row_wise", option="row_wise", convert=bool),
        ),
        adjust=_vectors,
        needs_base=False,
    ),
    "passthrough": Dialect(
        method=METHODS["passthrough"],
        parameters=(Parameter(name="scale", option="scale", per_model=True, convert=float),),
        needs_base=False,
    ),
    "sce": Dialect(
        method=METHODS["sce"],
        parameters=(
            Parameter(name="select_topk", option="density", convert=float),
            Parameter(name="int8_mask", option=None),
        ),
        defaults={"density": 1.0},
    ),
    "slerp": Dialect(method=METHODS["slerp"], parameters=(Parameter(name="t", option="t", convert=float),)),
    "task_arithmetic": Dialect(method=METHODS["task-arithmetic"], parameters=(*DELTAS, NO_DENSITY, NO_RESCALE)),
}
if "ties" in METHODS:
    DIALECTS["ties"] = Dialect(
        method=METHODS["ties"], parameters=(*DELTAS, DENSITY, NO_RESCALE), defaults={"density": 1.0}
    )
