"""A pair of checkpoints behind one running model: any method's result is set in place and scored, nothing is written.

The model's weights are those that `sculpt fuse` would write with the same method, bit for bit: it is the same loop,
into memory. Calibration and the methods' reductions are done once for all strengths.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..fusion.arithmetic.curvature import Curvatures
from ..fusion.arithmetic.two_sided import Protection
from ..fusion.checkpoint.output.processes import Processes
from ..fusion.errors import MethodError
from ..fusion.launch import Launch
from ..fusion.methods import Method
from ..fusion.names import block_of
from ..fusion.plan.plan import Plan, make_plan
from ..fusion.progress import Progress, silent
from ..fusion.record.manifest import Manifest
from ..fusion.run.backend import Backend
from ..fusion.run.fuse import execute
from ..fusion.run.in_memory import FusedTensors, RememberingBackend, fuse_in_memory
from ..fusion.run.prepared import Prepared, prepare_plan
from ..live.model import LiveModel, as_torch, load_model
from ..live.names import Assembly
from ..live.skeleton import build
from ..measuring import Statistics

BlockStrengths = Mapping[str, float]  # block to γ


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far a fused model is from its base: realised, and for AdaDARE-γ its share of kept deltas."""

    l1: float
    sparsity: float


class LiveFuse:
    """Sets fused weights in a live model.

    Attributes:
        live: The model; its weights are the tuned model's at first.
        seconds: Spent on fusing so far.
    """

    def __init__(
        self,
        prepared: Prepared,
        curvature: Mapping[str, Curvatures] | None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        backend: Backend | None = None,
    ) -> None:
        if prepared.encodings:
            raise MethodError(
                "weights are scored in memory as floats, not as the codes that `output_format` asks for",
                hint="leave it out here, and score the output itself",
                options=["output_format"],
            )
        tuned = prepared.plan.tuned[0]
        self.prepared = prepared
        self.curvature = curvature
        self.seconds = 0.0
        self._own_backend = backend or prepared.backend()
        self._protection: Protection | None = None
        self.backend = RememberingBackend(self._own_backend)
        self.live: LiveModel = load_model(tuned, device=device, dtype=dtype)
        self._assemblies = self._find_assemblies()

    def _find_assemblies(self) -> tuple[Assembly, ...]:
        """Return how output tensors become parameters: those of the side whose configuration the output has."""
        skeleton = build(
            self.prepared.plan.config_from,
            auto_class=None,
            dtype=torch.float32,
            device=torch.device("cpu"),
            seed=0,
            trust_remote_code=False,
        )
        return skeleton.names.assemblies

    def reseed(self, seed: int) -> None:
        """Draw with this seed from now on; what was remembered of the elements holds."""
        self.prepared = replace(self.prepared, settings=replace(self.prepared.settings, seed=seed))

    def plan_of(self, method: Method, blocks: BlockStrengths | None = None) -> Plan:
        """Return the plan of a fuse by this method, with a γ for each block where that is given."""
        plan = self.prepared.plan
        made = make_plan((plan.base, *plan.tuned), lambda _: method, self.prepared.settings.request())
        return made if blocks is None else with_block_strengths(made, method, blocks)

    def fused(
        self, method: Method, blocks: BlockStrengths | None = None, protection: Protection | None = None
    ) -> FusedTensors:
        """Return the tensors that a fuse would write."""
        start = time.perf_counter()
        method = method.for_models(1)
        if protection != self._protection:  # what was remembered is of other deltas
            self.backend, self._protection = RememberingBackend(self._own_backend), protection
        plan = self.plan_of(method, blocks)
        found = fuse_in_memory(
            plan,
            curvature=self.curvature,
            seed=self.prepared.settings.seed,
            backend=self.backend,
            keep_nonfinite=self.prepared.settings.policies.on_nonfinite == "keep",
            protector=self._with(protection).settings.protector(plan),
        )
        self.seconds += time.perf_counter() - start
        return found

    def set(
        self, method: Method, blocks: BlockStrengths | None = None, protection: Protection | None = None
    ) -> Distance:
        """Give the live model the weights of a fuse."""
        found = self.fused(method, blocks, protection)
        start = time.perf_counter()
        self._place(found.tensors)
        self.seconds += time.perf_counter() - start
        fused = [record for record in found.records.values() if record.kept is not None]
        elements = sum(record.num_fused for record in fused)
        return Distance(
            l1=sum(record.distance_l1 or 0.0 for record in fused),
            sparsity=1 - sum(record.kept or 0 for record in fused) / elements if elements else 0.0,
        )

    def write(
        self,
        method: Method,
        blocks: BlockStrengths | None = None,
        protection: Protection | None = None,
        *,
        output: Path | None = None,
        called: str | None = None,
        provenance: Mapping[str, Any] | None,
        scores: Mapping[str, Mapping[str, float]] | None = None,
        command: str | None = None,
        overwrite: bool = False,
        processes: Processes | None = None,
        compare: Callable[[Path], Mapping[str, Any]] | None = None,
        progress: Progress = silent,
    ) -> Manifest:
        """Write the weights of a fuse as an ordinary fuse does; return its manifest.

        Args:
            output: In place of the prepared fuse's.
            called: What the model card calls the model. Default: the output's own name.
            provenance: Where the curvature came from.
            scores: What the model card says of it and of what it was made of, by model.
            processes: That write it together.
            compare: As for `execute`.
        """
        settings, method = self._with(protection).settings, method.for_models(1)
        measured = method.uses_curvature or protection is not None
        prepared = prepare_plan(self.plan_of(method, blocks), output=output or self.prepared.output, settings=settings)
        prepared = replace(prepared, called=called, scores=scores, processes=processes or Processes(Launch()))
        return execute(
            prepared,
            curvature=self.curvature if measured else None,
            provenance=provenance if measured else None,
            command=command,
            overwrite=overwrite,
            compare=compare,
            progress=progress,
        )

    def _with(self, protection: Protection | None) -> Prepared:
        return replace(self.prepared, settings=replace(self.prepared.settings, protection=protection))

    @torch.no_grad()
    def _place(self, tensors: Mapping[str, np.ndarray]) -> None:
        model: Any = self.live.model
        named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
        for assembly in self._assemblies:
            sources = {name: as_torch(tensors[name]) for name in assembly.source_names}
            for target, value in assembly.make(sources).items():
                if target in named:
                    named[target].copy_(value)


def held_curvature(found: Statistics) -> Mapping[str, Curvatures] | None:
    """Return all the curvature of a fuse at once: a sweep needs it again and again."""
    if found.curvature is None or isinstance(found.curvature, Mapping):
        return found.curvature
    held: dict[str, Curvatures] = {}
    for block in found.curvature:
        held.update(block)
    return held


def with_block_strengths(plan: Plan, method: Method, blocks: BlockStrengths) -> Plan:
    """Return the plan with each fused tensor's γ set to its block's."""
    steps = tuple(
        step._replace(method=replace(method, gamma=blocks[block_of(step.name)]))  # pyright: ignore[reportCallIssue]
        if step.action == "fuse" and block_of(step.name) in blocks
        else step
        for step in plan.steps
    )
    return replace(plan, steps=steps)
