"""A method on state dicts or single arrays: what a fuse of checkpoints with these tensors would write, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..arithmetic.curvature import UNMEASURED, Curvature
from ..checkpoint.memory import MemorySource, like
from ..errors import MethodError
from ..methods import Method
from ..plan.plan import make_plan
from .backend import Backend
from .in_memory import fuse_in_memory
from .settings import Settings

State = Mapping[str, Any] | Any  # NumPy arrays or torch tensors by name, or one of them
Known = Mapping[str, Curvature] | Curvature | None  # of the tensors of one model, or of the one tensor


def apply(
    method: Method,
    base: State,
    tuned: State | Sequence[State],
    *,
    curvature: Known | Sequence[Known] = None,
    general: Known = None,
    settings: Settings | None = None,
    name: str = "weight",
    backend: Backend | None = None,
) -> Any:
    """Return the fused tensors: a dict where `base` is one, else one array, NumPy's or torch's as the base is.

        fused = sculpt.apply(sculpt.Ties(density=0.2), base.state_dict(), [one.state_dict(), other.state_dict()])

    Args:
        tuned: One fine-tune, or several.
        curvature: What was measured of the fine-tune's inputs, by tensor name, or one for each of several fine-tunes.
            Tensors without are fused with H = I. Under a protection the delta of a fine-tune without stands in.
        general: What was measured of the base's own inputs, for `settings.protection`.
        settings: Seed, selection, policies, protection, device and threads, as in a fuse.
        name: Of a tensor that is given alone: what its random numbers are drawn for, and what sentences call it.
        backend: What computes it, in place of what `settings` chooses.

    Raises:
        SculptError: As a fuse would.
    """
    settings = settings or Settings()
    several = isinstance(tuned, (list, tuple))
    models = list(tuned) if several else [tuned]
    own = [*curvature] if isinstance(curvature, (list, tuple)) else [curvature] * len(models)
    if len(own) != len(models):
        raise MethodError(f"curvature was given of {len(own)} models, expected one for each of {len(models)}")
    labels = ["base", *([f"tuned model {k}" for k in range(1, len(models) + 1)] if several else ["tuned model"])]
    sources = [
        MemorySource(_named(model, name), name=label) for model, label in zip((base, *models), labels, strict=True)
    ]
    method = method.for_models(settings.num_seen(method, len(models)))
    plan = make_plan(sources, lambda _: method, settings.request())
    known = [None if found is None else _named(found, name) for found in (general, *own)]
    if settings.protection is not None and general is None:
        raise MethodError("a protection needs statistics of the base's own inputs: `general`")
    unknown = [None, *([None if settings.protection is None else UNMEASURED] * len(models))]
    fused = fuse_in_memory(
        plan,
        curvature={
            step.name: tuple(
                missing if found is None else found.get(own_name or "")
                for found, missing, own_name in zip(known, unknown, step.curvatures, strict=True)
            )
            for step in plan.steps
            if step.action == "fuse"
        },
        seed=settings.seed,
        backend=backend or settings.backend(plan),
        keep_nonfinite=settings.policies.on_nonfinite == "keep",
        protector=settings.protector(plan),
    ).tensors
    if not isinstance(base, Mapping):
        return like(fused[name], base)
    example = next(iter(base.values()))
    return {key: like(tensor, base.get(key, example)) for key, tensor in fused.items()}


def _named(found: Any, name: str) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {name: found}
