"""Looking at a plan's tensors without writing any: the one loop, with a transform that ends in a finding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..checkpoint import Source, TensorInfo
from ..checkpoint.output.sink import FiguresSink
from ..launch import Launch
from ..methods import Method
from ..plan.plan import Plan
from ..plan.step import Step
from ..progress import Progress, silent
from .backend import Backend
from .loop import run
from .task import Context


def pair_plan(base: Source, tuned: Source, pairs: Iterable[tuple[TensorInfo, TensorInfo]], method: Method) -> Plan:
    """Return tensors of two checkpoints as a plan that looks at both by a method, by the base's names."""
    steps = tuple(
        Step(
            name=info.name,
            action="fuse",
            why="looked at",
            dtype=info.dtype,
            shape=info.shape,
            base=info,
            tuned=(other,),
            origin=0,
            num_fused=info.num_elements,
            key=info.name,
        )
        for info, other in pairs
    )
    return Plan(base=base, tuned=(tuned,), method=method, config_from=base, steps=steps, renamings=(), notes=())


def look(plan: Plan, backend: Backend, launch: Launch | None = None, *, progress: Progress = silent) -> dict[str, Any]:
    """Return what the plan's method finds of each tensor that it would fuse, by output name.

    Args:
        launch: This process among several, each of which looks at its share.

    Tensors without elements have no entry.

    Raises:
        NonFiniteError: An input holds NaN or infinity, where the transform minds.
    """
    context = Context(
        plan=plan,
        curvature=None,
        seed=0,
        backend=backend,
        sink=FiguresSink(),
        inputs=None,
        keep_nonfinite=False,
        launch=launch or Launch(),
    )
    return run([step for step in plan.steps if step.num_fused], context, progress=progress)
