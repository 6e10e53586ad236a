"""How far γ may go: Σ|δ| and ‖W_pre‖₁ of every tensor of a pair, in one pass over the files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from ..arithmetic.budget import Budget, L1Norms, l1_sums
from ..arithmetic.passes import Finding, Pass, Reduction
from ..checkpoint import Asked, open_checkpoint
from ..checkpoint.output.processes import Processes
from ..launch import Launch
from ..methods import AdaDare, Method
from ..names import block_of, natural_key
from ..plan.plan import Plan, Policies, Request, Selection, idle_models, make_plan, swapped
from ..progress import Progress, silent
from ..table import Table
from .backend import Backend, pick_backend
from .look import look

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TensorBound:
    """One tensor that a fuse would change: its name in the output, and its norms."""

    name: str
    num_elements: int
    norms: L1Norms

    def largest_gamma(self, budget: Budget) -> float:
        """Return the largest γ within the budget of this tensor."""
        return budget.largest_gamma(self.norms)


@dataclass(frozen=True, kw_only=True)
class Norms(Method):
    """Find Σ|δ| and ‖W_pre‖₁."""

    name: ClassVar[str] = "norms"
    title: ClassVar[str] = "L1 norms"
    source: ClassVar[str] = "sculpt"

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (the sums tell all)
        """Return the norms."""
        norms: L1Norms = yield Pass(function=l1_sums, combine=L1Norms.of)
        return Finding(value=norms, is_finite=bool(np.isfinite([norms.delta, norms.base]).all()))


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How far γ may go, tensor by tensor, in the order of the base's files.

    Attributes:
        budget: η of each tensor.
    """

    tensors: tuple[TensorBound, ...]
    budget: Budget

    def __repr__(self) -> str:
        return f"Bounds({len(self.tensors)} tensors, largest γ for all {_told(self.largest_gamma)})"

    def _repr_html_(self) -> str:
        return self.table().html()

    @property
    def largest_gamma(self) -> float:
        """The largest γ that is within the budget of every tensor; infinite where no tensor changed."""
        return self.tightest.largest_gamma(self.budget)

    @property
    def tightest(self) -> TensorBound:
        """The tensor that allows least."""
        return min(self.tensors, key=lambda tensor: tensor.largest_gamma(self.budget))

    @property
    def blocks(self) -> dict[str, tuple[TensorBound, ...]]:
        """The tensors of each block, layers in their order."""
        blocks: dict[str, list[TensorBound]] = {}
        for tensor in self.tensors:
            blocks.setdefault(block_of(tensor.name), []).append(tensor)
        return {name: tuple(blocks[name]) for name in sorted(blocks, key=natural_key)}

    def table(self) -> Table:
        """Return a row a block."""
        rows = []
        for block, tensors in self.blocks.items():
            norms = total_of(tensors)
            rows.append(
                [
                    block,
                    _told(min(tensor.largest_gamma(self.budget) for tensor in tensors)),
                    f"{norms.delta / norms.base:.3%}" if norms.base else "–",
                    f"{norms.delta:.4g}",
                    f"{norms.base:.4g}",
                    f"{sum(tensor.num_elements for tensor in tensors):,}",
                ]
            )
        eta, share = self.budget.eta, self.budget.eta_relative
        limit = f"{eta:g}" if eta is not None else f"{share:g}·‖base‖₁"
        whole = total_of(self.tensors)
        return Table(
            columns=["block", "largest γ", "Σ|δ|/‖base‖₁", "Σ|δ|", "‖base‖₁", "parameters"],
            rows=rows,
            title=f"largest γ for η = {limit} of each tensor",
            note=f"{len(self.tensors)} tensors: Σ|δ| {whole.delta:.4g}, ‖base‖₁ {whole.base:.4g}. One γ that is within "
            f"the budget of all of them: {_told(self.largest_gamma)}, by `{self.tightest.name}`.",
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain values; a γ without limit is None."""

        def finite(value: float) -> float | None:
            return None if value == float("inf") else value

        def figures(name: str, tensors: Sequence[TensorBound]) -> dict[str, Any]:
            norms = total_of(tensors)
            return {
                "name": name,
                "num_elements": sum(tensor.num_elements for tensor in tensors),
                "delta_l1": norms.delta,
                "base_l1": norms.base,
                "largest_gamma": finite(min(tensor.largest_gamma(self.budget) for tensor in tensors)),
            }

        return {
            "eta": self.budget.eta,
            "eta_relative": self.budget.eta_relative,
            "blocks": [figures(name, tensors) for name, tensors in self.blocks.items()],
            "tensors": [figures(tensor.name, [tensor]) for tensor in self.tensors],
            "largest_gamma": finite(self.largest_gamma),
        }


def total_of(tensors: Sequence[TensorBound]) -> L1Norms:
    """Return the norms of several tensors together."""
    return sum((tensor.norms for tensor in tensors), L1Norms(delta=0.0, base=0.0))


def _told(gamma: float) -> str:
    return "any" if gamma == float("inf") else f"{gamma:.4g}"


def measure_bounds(
    base: Asked,
    tuned: Asked,
    *,
    selection: Selection | None = None,
    policies: Policies | None = None,
    device: str = "auto",
    threads: int | None = None,
    processes: Processes | None = None,
    progress: Progress = silent,
) -> tuple[TensorBound, ...]:
    """Return Σ|δ| and ‖W_pre‖₁ of each tensor that a fuse would change, in the order of the base's files.

    Args:
        processes: That have met, and look at a share of the tensors each.

    Raises:
        SculptError: The pair cannot be fused; or a tensor holds NaN or infinity.
    """
    opened = open_checkpoint(base)
    method = AdaDare()
    request = Request(selection=selection or Selection(), policies=policies or Policies())
    models = [opened, open_checkpoint(tuned, opened)]
    plan = make_plan(models, lambda _: method, request)
    for warning in (*idle_models(models), *swapped(models)):
        logger.warning("%s", warning)
    return bounds_of(plan, pick_backend(device, threads=threads), processes, progress=progress)


def bounds_of(
    plan: Plan, backend: Backend, processes: Processes | None = None, *, progress: Progress = silent
) -> tuple[TensorBound, ...]:
    """Return the norms of each tensor that a plan fuses with the first tuned model."""
    processes = processes or Processes(Launch())
    own: dict[str, L1Norms] = look(plan.with_method(Norms()), backend, processes.launch, progress=progress)
    told = processes.gather("norms", {name: asdict(norms) for name, norms in own.items()})
    found = {name: L1Norms(**norms) for share in told for name, norms in share.items()}
    nothing = L1Norms(delta=0.0, base=0.0)
    return tuple(
        TensorBound(name=step.name, num_elements=step.num_fused, norms=found.get(step.name, nothing))
        for step in plan.steps
        if step.action == "fuse"
    )
