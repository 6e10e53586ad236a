"""What will happen to each tensor, and why, from headers alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, get_args, get_type_hints

from .checkpoint import Checkpoint, TensorInfo
from .dtypes import BY_TORCH_NAME, DTYPES, DType
from .errors import CheckpointError, MethodError, MismatchError
from .methods import Method
from .names import OUTPUT_MODULES, Renaming, align, config_values, selects, tied_source

Side = Literal["base", "tuned"]


@dataclass(frozen=True, kw_only=True)
class Policies:
    """What to do where base and tuned disagree. Each is an error unless it is allowed by name.

    Attributes:
        on_missing: A tensor of the base that the tuned model lacks.
        on_extra: A tensor that only the tuned model has.
        on_mismatch: Another shape.
        on_dtype: Another float dtype; `convert` computes in float32 and stores the base's.
        on_nonfinite: NaN or infinity; `keep` writes the tuned model's element there.
    """

    on_missing: Literal["error", "keep-base"] = "error"
    on_extra: Literal["error", "drop", "take-tuned"] = "error"
    on_mismatch: Literal["error", "keep-base", "take-tuned"] = "error"
    on_dtype: Literal["error", "convert"] = "error"
    on_nonfinite: Literal["error", "keep"] = "error"

    def __post_init__(self) -> None:
        for name, annotation in get_type_hints(Policies).items():
            choices = get_args(annotation)
            if getattr(self, name) not in choices:
                option = "--" + name.replace("_", "-")
                raise MethodError(f"`{option}` must be one of {', '.join(choices)}, got `{getattr(self, name)}`")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which tensors are fused; the others are copied from the base, or from the tuned model with `rest="tuned"`."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rest: Side = "base"

    def covers(self, name: str) -> bool:
        """Return whether a tensor is to be fused."""
        return (not self.include or selects(self.include, name)) and not selects(self.exclude, name)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One output tensor.

    Attributes:
        name: In the output.
        action: `fuse`, or `copy` from `source`.
        why: The reason, for the plan and the manifest.
        dtype: As stored in the output, a safetensors code.
        base: The base's tensor, or None.
        tuned: One a tuned model, or None where it has none.
        source: Where a copied tensor, or the tail of a grown one, is copied from.
        num_fused: How many leading elements are fused; less than all of them for a grown vocabulary.
        key: The name that the random numbers are drawn for; tied tensors share one.
        curvature: The name under which calibration has seen it: the first tuned model's.
        method: In place of the run's own, where a recipe has a rule for this tensor.
    """

    name: str
    action: Literal["fuse", "copy"]
    why: str
    dtype: str
    shape: tuple[int, ...]
    base: TensorInfo | None
    tuned: tuple[TensorInfo | None, ...]
    source: Side
    num_fused: int
    key: str
    curvature: str
    method: Method | None = None

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return (self.num_elements * DTYPES[self.dtype].bits + 7) // 8

    @property
    def copied_from(self) -> tuple[int, TensorInfo]:
        """Where a copy, or a grown tail, comes from: 0 for the base, k for tuned model k; and the tensor there."""
        sides = (self.base, *self.tuned) if self.source == "base" else (None, *self.tuned)
        return next((index, info) for index, info in enumerate(sides) if info is not None)

    @property
    def bytes_read(self) -> int:
        """Stored bytes that this step looks at once."""
        if self.action == "copy":
            return self.copied_from[1].nbytes
        return sum(info.nbytes for info in (self.base, *self.tuned) if info is not None)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every output tensor in the order in which the base's files hold them, and what was found on the way."""

    base: Checkpoint
    tuned: tuple[Checkpoint, ...]
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


def _refuse_unreadable(checkpoint: Checkpoint) -> None:
    for info in checkpoint.tensors.values():
        if info.stored.numpy is None or info.dtype.startswith("F8") or info.dtype == "C64":
            raise CheckpointError(
                f"`{info.name}` in `{checkpoint.path}` is {info.stored.torch}, which sculpt cannot fuse yet",
                hint="fuse the unquantised checkpoints, then quantise the result",
            )


@dataclass(frozen=True, kw_only=True)
class _Sides:
    """Base and tuned under the base's names: what `_step_of` decides from."""

    base: Checkpoint
    tuned: tuple[Checkpoint, ...]
    pairs: tuple[Mapping[str, str], ...]
    config_from: Side
    policies: Policies
    selection: Selection
    identity: Side | None
    dtype: DType | None


def _resolve(name: str, index: int, sides: _Sides) -> TensorInfo | None:
    """Return the tensor of tuned model `index` that stands for the base's `name`, through ties where it must be."""
    checkpoint = sides.tuned[index]
    matched = sides.pairs[index].get(name)
    if matched is not None:
        return checkpoint.tensors[matched]
    shape = sides.base.tensors[name].shape
    shapes = {other: info.shape for other, info in checkpoint.tensors.items()}
    tied = tied_source(name, shapes, shape, checkpoint.config)
    return checkpoint.tensors[tied] if tied else None


def _is_grown(base: TensorInfo, tuned: TensorInfo, sides: _Sides) -> bool:
    """Return whether only the number of vocabulary rows differs, and each side's config confirms its own."""
    if not base.shape or not tuned.shape or base.shape[1:] != tuned.shape[1:] or tuned.shape[0] < base.shape[0]:
        return False
    sizes = [config_values(checkpoint.config, "vocab_size") for checkpoint in (sides.base, sides.tuned[0])]
    return base.shape[0] in sizes[0] and tuned.shape[0] in sizes[1]


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _step_of(base: TensorInfo, sides: _Sides) -> Step | None:
    """Decide what happens to one tensor of the base; None if the output has no place for it."""
    policies, name = sides.policies, base.name
    found = [_resolve(name, index, sides) for index in range(len(sides.tuned))]
    out_name = sides.pairs[0].get(name, name) if sides.config_from == "tuned" else name

    def step(action: Literal["fuse", "copy"], why: str, source: Side = "base", fused: int | None = None) -> Step:
        info = found[0] if source == "tuned" or (fused is not None and sides.config_from == "tuned") else base
        assert info is not None
        stored = base if action == "fuse" else info
        dtype = sides.dtype.code if sides.dtype and stored.stored.fusible else stored.dtype
        return Step(
            name=out_name,
            action=action,
            why=why,
            dtype=dtype,
            shape=info.shape,
            base=base,
            tuned=tuple(found),
            source=source,
            num_fused=(info.num_elements if fused is None else fused) if action == "fuse" else 0,
            key=name,
            curvature=found[0].name if found[0] else name,
        )

    for checkpoint, info in zip(sides.tuned, found, strict=True):
        if info is None:
            if policies.on_missing == "keep-base":
                return step("copy", f"missing in {checkpoint.path}")
            raise MismatchError(
                name,
                f"`{name}` is in the base and missing in `{checkpoint.path}`",
                hint="`--on-missing keep-base` copies such tensors from the base",
            )
    infos = [info for info in found if info is not None]
    if name not in sides.pairs[0] and sides.config_from == "tuned":
        return None  # the tuned model ties it: its one copy is fused under the other name

    grown = False
    for checkpoint, info in zip(sides.tuned, infos, strict=True):
        if info.shape == base.shape:
            continue
        if len(infos) == 1 and _is_grown(base, info, sides):
            grown = True
            continue
        if policies.on_mismatch == "keep-base":
            return step("copy", f"shape differs in {checkpoint.path}")
        if policies.on_mismatch == "take-tuned":
            return step("copy", f"shape differs in {checkpoint.path}", "tuned")
        raise MismatchError(
            name,
            f"`{name}` is {_shape_text(base.shape)} in the base and {_shape_text(info.shape)} in `{checkpoint.path}`",
            hint="`--on-mismatch keep-base` or `take-tuned` copies such tensors from one side",
        )
    for checkpoint, info in zip(sides.tuned, infos, strict=True):
        if info.dtype != base.dtype and not (
            policies.on_dtype == "convert" and info.stored.fusible and base.stored.fusible
        ):
            raise MismatchError(
                name,
                f"`{name}` is {base.stored.torch} in the base and {info.stored.torch} in `{checkpoint.path}`",
                hint="`--on-dtype convert` computes in float32 and stores the base's dtype",
            )
    if not base.stored.fusible:
        return step("copy", f"{base.stored.torch} is not fused", sides.identity or "tuned")
    if not sides.selection.covers(name):
        return step("copy", "not selected", sides.selection.rest)
    if grown:
        rows, more = base.shape[0], infos[0].shape[0] - base.shape[0]
        taken = "taken from the tuned model" if sides.config_from == "tuned" else "dropped"
        return step("fuse", f"{rows} common rows; {more} new rows {taken}", sides.config_from, base.num_elements)
    return step("fuse", "selected")


def _extra_step(info: TensorInfo, sides: _Sides) -> Step | None:
    """Decide what happens to a tensor that only the tuned model stores."""
    name, checkpoint, policies = info.name, sides.tuned[0], sides.policies
    base_shapes = {other: found.shape for other, found in sides.base.tensors.items()}
    tied = tied_source(name, base_shapes, info.shape, sides.base.config)
    if tied is not None:
        if sides.config_from == "base" or True in config_values(checkpoint.config, "tie_word_embeddings"):
            return None  # the output ties it: one decision a group
        base = sides.base.tensors[tied]
        return Step(
            name=name,
            action="fuse" if sides.selection.covers(name) and info.stored.fusible else "copy",
            why=f"the base ties it to {tied}",
            dtype=sides.dtype.code if sides.dtype else base.dtype,
            shape=info.shape,
            base=base,
            tuned=(info,),
            source=sides.selection.rest,
            num_fused=info.num_elements if sides.selection.covers(name) else 0,
            key=name,
            curvature=name,
        )
    if policies.on_extra == "drop":
        return None
    if policies.on_extra == "take-tuned":
        return Step(
            name=name,
            action="copy",
            why="only in the tuned model",
            dtype=sides.dtype.code if sides.dtype and info.stored.fusible else info.dtype,
            shape=info.shape,
            base=None,
            tuned=(info,),
            source="tuned",
            num_fused=0,
            key=name,
            curvature=name,
        )
    raise MismatchError(
        name,
        f"`{name}` is in `{checkpoint.path}` and missing in the base",
        hint="`--on-extra take-tuned` copies such tensors, `--on-extra drop` leaves them out",
    )


def _tied_keys(steps: Sequence[Step], sides: _Sides) -> list[Step]:
    """Give tensors that the output's config ties, but its files store twice, one key: one decision a group."""
    side = sides.base if sides.config_from == "base" else sides.tuned[0]
    if True not in config_values(side.config, "tie_word_embeddings"):
        return list(steps)
    shapes = {step.name: step.shape for step in steps}
    by_name = {step.name: step for step in steps}
    tied = []
    for step in steps:
        output_side = step.name.split(".")[-2:-1]
        source = None
        if output_side and output_side[0] in OUTPUT_MODULES:
            source = tied_source(step.name, shapes, step.shape, side.config)
        if source is not None and by_name[source].action == step.action == "fuse":
            tied.append(
                replace(
                    step,
                    key=by_name[source].key,
                    curvature=by_name[source].curvature,
                    why=f"tied to {source}",
                )
            )
        else:
            tied.append(step)
    return tied


def make_plan(
    base: Checkpoint,
    tuned: Sequence[Checkpoint],
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
    sides = _Sides(
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
        step = _step_of(info, sides)
        if step is None:
            notes.append(f"`{info.name}` is not stored: the tuned model ties it")
        else:
            steps.append(step)
    for index, checkpoint in enumerate(tuned):
        used = set(alignments[index].pairs.values()) | {s.tuned[index].name for s in steps if s.tuned[index]}  # pyright: ignore[reportOptionalMemberAccess]
        for name, info in checkpoint.tensors.items():
            if name in used:
                continue
            step = _extra_step(info, sides) if index == 0 else None
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
        steps=tuple(_tied_keys(steps, sides)),
        renamings=renamings,
        notes=tuple(notes),
    )


def _unused(patterns: Sequence[str], names: Collection[str]) -> list[str]:
    return [pattern for pattern in patterns if not any(selects([pattern], name) for name in names)]
