"""A fuse that runs while curvature is still being measured: a block is fused as soon as it has been calibrated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ..arithmetic.curvature import Curvatures
from ..plan.step import Step
from ..progress import Progress
from ..record.records import TensorRecord
from .loop import run
from .task import Context


def run_as_measured(
    context: Context, blocks: Iterator[Mapping[str, Curvatures]], *, progress: Progress
) -> dict[str, TensorRecord]:
    """Run every step of the plan and return the records; a tensor is fused once its curvature has arrived.

    While its weights are in the page cache from calibration, so the tuned checkpoint comes from the disk once. What
    never gets curvature is fused last, with H = I. A method that reduces over more than a tensor waits for the end.

    Args:
        blocks: Each model's curvature by output name, each tensor once.
    """
    waiting: dict[str, Step] = {step.name: step for step in context.plan.steps}
    total = sum(step.bytes_read for step in context.plan.steps)
    records: dict[str, TensorRecord] = {}
    held: dict[str, Curvatures] = {}
    at_once = all((step.method or context.plan.method).scope == "tensor" for step in waiting.values())

    def run_some(steps: list[Step], curvature: Mapping[str, Curvatures]) -> None:
        before = total - sum(step.bytes_read for step in waiting.values())
        found = run(
            steps,
            replace(context, curvature=curvature),
            progress=lambda done, _total, name: progress(before + done, total, name),
        )
        records.update(found)
        for step in steps:
            del waiting[step.name]

    for block in blocks:
        if at_once:
            ready = [step for step in waiting.values() if step.action == "fuse" and step.name in block]
            run_some(ready, block)
        else:
            held |= block
    run_some(list(waiting.values()), held)
    return records
