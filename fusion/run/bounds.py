"""How far γ may go: Σ|δ| and ‖W_pre‖₁ of every tensor of a pair, in one pass over the files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..arithmetic.budget import Budget, L1Norms, l1_sums
from ..arithmetic.passes import Finding, Pass, Reduction
from ..checkpoint import open_checkpoint
from ..checkpoint.output.processes import Processes
from ..launch import Launch
from ..methods import AdaDare, Method
from ..plan.plan import Plan, Policies, Request, Selection, make_plan
from ..progress import Progress, silent
from .backend import Backend, pick_backend
from .look import look


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


def measure_bounds(
    base: Path | str,
    tuned: Path | str,
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
    plan = make_plan([opened, open_checkpoint(tuned, opened)], lambda _: method, request)
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
