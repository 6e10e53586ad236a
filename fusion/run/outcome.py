"""What a plan's output will be, as its headers would say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoint import Source, TensorInfo
from ..names import block_of
from ..plan.plan import Plan
from ..plan.step import Step
from .prepared import Prepared

# Keys of a configuration that have no say in which weights a model has and what it does with them.
IDLE_KEYS = frozenset({"dtype", "torch_dtype", "transformers_version", "_name_or_path", "_commit_hash", "use_cache"})


def blocks_of(plan: Plan) -> dict[str, tuple[Source, str]]:
    """Return, for each block of the output, the model and the block there that it is made of."""
    models = (plan.base, *plan.tuned)
    found: dict[str, tuple[Source, str]] = {}
    for step in plan.steps:
        index, own = _lead(step)
        found.setdefault(block_of(step.name), (models[index], block_of(own.name)))
    return found


def _lead(step: Step) -> tuple[int, TensorInfo]:
    """Return what stands for the base in a step, with its model: what it is copied from, or the first that it has."""
    infos = (step.base, *step.tuned)
    index = step.origin if step.action == "copy" else next(k for k, info in enumerate(infos) if info is not None)
    info = infos[index]
    assert info is not None  # a step is made of something
    return index, info


def is_as_an_input(prepared: Prepared) -> bool:
    """Return whether names, shapes, order of layers and configuration are, all together, those of one input folder."""
    plan = prepared.plan
    written = {step.name: step.shape for step in plan.steps}
    if any(block != origin for block, (_, origin) in blocks_of(plan).items()):
        return False
    for model in (plan.base, *plan.tuned):
        own = model.base or model  # an adapter has its base's configuration
        same = {name: info.shape for name, info in own.tensors.items()} == written
        if same and _telling(own.config) == _telling(prepared.config):
            return True
    return False


def _telling(config: Mapping[str, Any] | None) -> Any:
    if isinstance(config, Mapping):
        return {
            key: _telling(value)
            for key, value in config.items()
            if key not in IDLE_KEYS and not key.endswith("token_id") and value is not None
        }
    return config
