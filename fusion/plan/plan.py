"""What will happen to each tensor, and why, from headers alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..checkpoint import Source
from ..dtypes import BY_TORCH_NAME, DTYPES
from ..errors import CheckpointError, MethodError, MismatchError
from ..methods import Method
from ..names import Renaming, align, selects
from .decide import Sides, extra_step, step_of, tied_keys
from .step import Policies, Selection, Side, Step

__all__ = ["Plan", "Policies", "Selection", "Side", "Step", "make_plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every output tensor in the order in which the base's files hold them, and what was found on the way."""

    base: Source
    tuned: tuple[Source, ...]
    steps: tuple[Step, ...]
    renamings: tuple[Renaming, ...]
    notes: tuple[str, ...]

    @property
    def bytes_written(self) -> int:
        """Bytes of all output tensors."""
        return sum(step.nbytes for step in self.steps)

    @property
    def bytes_read(self) -> int:
        """Stored bytes of everything that is read."""
        return sum(step.bytes_read for step in self.steps)


def _refuse_unreadable(checkpoint: Source) -> None:
    for info in checkpoint.tensors.values():
        if info.kind.numpy is None or info.dtype.startswith("F8") or info.dtype == "C64":
            raise CheckpointError(
                f"`{info.name}` in `{checkpoint.path}` is {info.kind.torch}, which sculpt cannot fuse yet",
                hint="fuse the unquantised checkpoints, then quantise the result",
            )


def make_plan(
    base: Source,
    tuned: Sequence[Source],
    *,
    method: Method,
    selection: Selection | None = None,
    policies: Policies | None = None,
    config_from: Side = "tuned",
    dtype: str | None = None,
) -> Plan:
    """Return one step for each output tensor, without reading a weight.

    Args:
        config_from: Whose names, shapes and configuration the output has.
        dtype: torch name of the float dtype to store, or None for the base's.

    Raises:
        MismatchError: Base and tuned disagree and no policy allows it.
        CheckpointError: A tensor has a dtype that cannot be read.
    """
    selection, policies = selection or Selection(), policies or Policies()
    cast = None
    if dtype is not None:
        cast = BY_TORCH_NAME.get(dtype)
        if cast is None or not cast.fusible:
            choices = ", ".join(found.torch for found in DTYPES.values() if found.fusible)
            raise MethodError(f"`--dtype` must be one of {choices}, got `{dtype}`")
    for checkpoint in (base, *tuned):
        _refuse_unreadable(checkpoint)
    base_shapes = {name: info.shape for name, info in base.tensors.items()}
    alignments = [align(base_shapes, {name: info.shape for name, info in c.tensors.items()}) for c in tuned]
    sides = Sides(
        base=base,
        tuned=tuple(tuned),
        pairs=tuple(alignment.pairs for alignment in alignments),
        config_from=config_from,
        policies=policies,
        selection=selection,
        identity=method.identity,
        dtype=cast,
    )
    steps: list[Step] = []
    notes: list[str] = []
    for info in base.tensors.values():
        step = step_of(info, sides)
        if step is None:
            notes.append(f"`{info.name}` is not stored: the tuned model ties it")
        else:
            steps.append(step)
    for index, checkpoint in enumerate(tuned):
        used = set(alignments[index].pairs.values()) | {s.tuned[index].name for s in steps if s.tuned[index]}  # pyright: ignore[reportOptionalMemberAccess]
        for name, info in checkpoint.tensors.items():
            if name in used:
                continue
            step = extra_step(info, sides) if index == 0 else None
            if index and policies.on_extra == "error":
                raise MismatchError(name, f"`{name}` is in `{checkpoint.path}` and missing in the base")
            if step is None:
                notes.append(f"`{name}` of `{checkpoint.path}` is left out")
            else:
                steps.append(step)
    for unused in _unused(selection.include, base_shapes):
        notes.append(f"`--include {unused}` matches no tensor")
    for unused in _unused(selection.exclude, base_shapes):
        notes.append(f"`--exclude {unused}` matches no tensor")
    if not any(step.action == "fuse" for step in steps):
        raise MethodError(
            "no tensor is selected for fusing", hint="`sculpt inspect` lists the names that --include takes"
        )
    renamings = tuple(rule for alignment in alignments for rule in alignment.renamings)
    return Plan(
        base=base,
        tuned=tuple(tuned),
        steps=tuple(tied_keys(steps, sides)),
        renamings=renamings,
        notes=tuple(notes),
    )


def _unused(patterns: Sequence[str], names: Collection[str]) -> list[str]:
    return [pattern for pattern in patterns if not any(selects([pattern], name) for name in names)]
