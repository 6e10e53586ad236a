"""Model Tailor: keep the few deltas that matter, and let them make up for those that are taken back.

    score = w·z(|δ|) + (1 − w)·z(W_sft²/d²)        z: standard score over a row's 128 columns
    per block of 128 columns, the lowest `sparsity` of the scores go back to W_pre
    e     = (W − Q)/d                              column by column, Q the value that is kept or taken back
    W_j  −= e·U_ij for every later column j        what the column's change did to the output, made up for

with `UᵀU = (H + 0.01·mean(diag H)·I)⁻¹`, d the diagonal of U, and H = 2XXᵀ + I.

Zhu et al., Model Tailor, ICML 2024 (arXiv:2402.12048), on Optimal Brain Surgeon (Hassibi & Stork) in SparseGPT's order
of columns. The released code adds the compensation where OBS subtracts it, which on correlated inputs makes the output
worse than none at all; `compensation: released` does the same. Its w is 0.5 where the paper's is 0.8. It drops
`floor(N·sparsity) + 1` of a block's N elements, and all that tie with the last; here it is `floor(N·sparsity)`, and of
equal scores the first are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, get_args

from array_api_compat import array_namespace

from ..arithmetic.group import Group, Region
from ..arithmetic.inverse_factor import inverse_factors
from ..arithmetic.matrices import Matrices, Whole, delivered, whole_of
from ..arithmetic.passes import Map, Reduction
from ..transforms.scale import add_scaled
from .checks import at_least, fraction, one_of
from .method import Method

Compensation = Literal["obs", "released", "none"]
SIGN = {"obs": -1.0, "released": 1.0, "none": 0.0}


def standard_score(values: Any) -> Any:
    """Return `(x − mean)/std` of each row, shape (rows, columns); 0 where a row has no spread."""
    xp = array_namespace(values)
    columns = values.shape[1]
    centred = values - xp.mean(values, axis=1, keepdims=True)
    if columns < 2:
        return xp.zeros_like(values)
    deviation = xp.sqrt(xp.sum(centred * centred, axis=1, keepdims=True) / (columns - 1))
    flat = deviation <= 1e-12 * xp.max(xp.abs(values), axis=1, keepdims=True)
    return xp.where(flat, xp.zeros_like(values), centred / xp.where(flat, xp.ones_like(deviation), deviation))


def largest(scores: Any, count: int) -> Any:
    """Return where the `count` largest scores are, of equal ones the first; bool, of the scores' shape."""
    xp = array_namespace(scores)
    flat = xp.reshape(scores, (-1,))
    order = xp.argsort(-flat, stable=True)
    chosen = xp.zeros(flat.shape, dtype=xp.bool, device=flat.device)
    chosen[order[:count]] = True
    return xp.reshape(chosen, scores.shape)


def tailored(base: Any, tuned: Any, diagonal: Any, factor: Any, method: Tailor) -> tuple[Any, Any]:
    """Return the fused matrix and where a delta was kept, both (rows, columns).

    Args:
        base, tuned: (rows, columns).
        diagonal: Of U, (1, columns) or (rows, columns).
        factor: U, (columns, columns), or None for a diagonal one, which leaves nothing to compensate.
    """
    xp = array_namespace(base)
    sign = 0.0 if factor is None else SIGN[method.compensation]
    wide = xp.float64
    current = xp.astype(tuned, tuned.dtype, copy=True)
    fused = xp.zeros_like(base)
    kept = xp.zeros(base.shape, dtype=xp.bool, device=base.device)
    for start in range(0, base.shape[1], method.block_size):
        columns = slice(start, min(start + method.block_size, base.shape[1]))
        block = current[:, columns]
        change = standard_score(xp.abs(xp.astype(tuned[:, columns], wide) - xp.astype(base[:, columns], wide)))
        sensitivity = standard_score(xp.astype(block, wide) ** 2 / diagonal[:, columns] ** 2)
        score = method.salience * change + (1 - method.salience) * sensitivity
        count = prod(block.shape)
        keep = largest(score, count - int(count * method.sparsity))
        kept[:, columns] = keep
        errors = xp.zeros_like(block)
        for i in range(block.shape[1]):
            j = start + i
            value = xp.where(keep[:, i], block[:, i], base[:, j])
            fused[:, j] = value
            if factor is not None and sign:
                errors[:, i] = (block[:, i] - value) / xp.astype(diagonal[0, j], block.dtype)
                row = xp.astype(factor[j, columns], block.dtype)
                block[:, i:] = block[:, i:] + sign * errors[:, i : i + 1] * row[None, i:]
        if factor is not None and sign and columns.stop < base.shape[1]:
            later = xp.astype(errors, wide) @ factor[columns, columns.stop :]
            current[:, columns.stop :] = current[:, columns.stop :] + sign * xp.astype(later, block.dtype)
    return fused, kept


@dataclass(frozen=True, kw_only=True)
class Tailor(Method):
    """Keep the deltas that matter most, undo the others, and adjust the kept ones to compensate.

    Attributes:
        sparsity: Fraction of the deltas to undo, in [0, 1].
        salience: w, the weight of |δ| in the score; 1 − w is the weight of the sensitivity of the output.
        compensation: `obs`, as in Optimal Brain Surgeon; `released`, with the sign of the authors' code; or `none`.
        block_size: Number of columns from which deltas are chosen together.
    """

    sparsity: float = 0.9
    salience: float = 0.8
    compensation: Compensation = "obs"
    block_size: int = 128

    name: ClassVar[str] = "tailor"
    title: ClassVar[str] = "Model Tailor"
    source: ClassVar[str] = "arXiv:2402.12048"
    uses_curvature: ClassVar[bool] = True
    needs_gram: ClassVar[bool] = True
    bytes_per_element: ClassVar[int] = 24
    bytes_per_input_pair: ClassVar[int] = 40

    def __post_init__(self) -> None:
        fraction("sparsity", self.sparsity)
        fraction("salience", self.salience)
        one_of("compensation", self.compensation, get_args(Compensation))
        at_least("block_size", self.block_size, 1)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base where everything is taken back, the tuned model where nothing is."""
        return "base" if self.sparsity == 1 else "tuned" if self.sparsity == 0 else None

    def region(self, group: Group) -> Region:  # noqa: ARG002
        """Return `matrix`: the choice within a block runs over all rows."""
        return "element" if self.identity else "matrix"

    def matrix(self, matrices: Matrices) -> Whole:
        """Return the tensor with its deltas chosen and compensated; the base's bits where one was taken back."""
        group = matrices.group
        factors = inverse_factors(group.name, group.shape, group.target)
        parts = []
        for k, (base, tuned) in enumerate(matrices.stacked(factors.layout)):
            xp = array_namespace(base)
            diagonal = xp.asarray(factors.diagonals[k], device=base.device)
            factor = None if factors.factors is None else xp.asarray(factors.factors[k], device=base.device)
            parts.append(tailored(base, tuned, diagonal, factor, self))
        return whole_of(factors.layout, parts)

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (the tensor has been made whole)
        """Return the map at once."""
        yield from ()
        if self.identity is not None:
            return Map(function=add_scaled, arguments=(0.0 if self.identity == "base" else 1.0,))
        return Map(function=delivered)
