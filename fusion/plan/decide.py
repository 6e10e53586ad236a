"""What becomes of one tensor: matched, tied, grown, copied or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..checkpoint import Source, TensorInfo
from ..dtypes import DType
from ..errors import MismatchError
from ..names import OUTPUT_MODULES, config_values, tied_source
from .step import Policies, Selection, Side, Step


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Base and tuned under the base's names: what `step_of` decides from."""

    base: Source
    tuned: tuple[Source, ...]
    pairs: tuple[Mapping[str, str], ...]
    config_from: Side
    policies: Policies
    selection: Selection
    identity: Side | None
    dtype: DType | None


def _resolve(name: str, index: int, sides: Sides) -> TensorInfo | None:
    """Return the tensor of tuned model `index` that stands for the base's `name`, through ties where it must be."""
    checkpoint = sides.tuned[index]
    matched = sides.pairs[index].get(name)
    if matched is not None:
        return checkpoint.tensors[matched]
    shape = sides.base.tensors[name].shape
    shapes = {other: info.shape for other, info in checkpoint.tensors.items()}
    tied = tied_source(name, shapes, shape, checkpoint.config)
    return checkpoint.tensors[tied] if tied else None


def _is_grown(base: TensorInfo, tuned: TensorInfo, sides: Sides) -> bool:
    """Return whether only the number of vocabulary rows differs, and each side's config confirms its own."""
    if not base.shape or not tuned.shape or base.shape[1:] != tuned.shape[1:] or tuned.shape[0] < base.shape[0]:
        return False
    sizes = [config_values(checkpoint.config, "vocab_size") for checkpoint in (sides.base, sides.tuned[0])]
    return base.shape[0] in sizes[0] and tuned.shape[0] in sizes[1]


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def step_of(base: TensorInfo, sides: Sides) -> Step | None:
    """Decide what happens to one tensor of the base; None if the output has no place for it."""
    policies, name = sides.policies, base.name
    found = [_resolve(name, index, sides) for index in range(len(sides.tuned))]
    out_name = sides.pairs[0].get(name, name) if sides.config_from == "tuned" else name

    def step(action: Literal["fuse", "copy"], why: str, source: Side = "base", fused: int | None = None) -> Step:
        info = found[0] if source == "tuned" or (fused is not None and sides.config_from == "tuned") else base
        assert info is not None
        kept = base if action == "fuse" else info
        dtype = sides.dtype.code if sides.dtype and kept.kind.fusible else kept.stored
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
        converts = policies.on_dtype == "convert" and info.kind.fusible and base.kind.fusible
        if info.stored != base.stored and not converts:
            raise MismatchError(
                name,
                f"`{name}` is {base.kind.torch} in the base and {info.kind.torch} in `{checkpoint.path}`",
                hint="`--on-dtype convert` computes in float32 and stores the base's dtype",
            )
    if all(info is base for info in infos):
        return step("copy", "no adapter changes it")
    if not base.kind.fusible:
        return step("copy", f"{base.kind.torch} is not fused", sides.identity or "tuned")
    if not sides.selection.covers(name):
        return step("copy", "not selected", sides.selection.rest)
    if grown:
        rows, more = base.shape[0], infos[0].shape[0] - base.shape[0]
        taken = "taken from the tuned model" if sides.config_from == "tuned" else "dropped"
        return step("fuse", f"{rows} common rows; {more} new rows {taken}", sides.config_from, base.num_elements)
    return step("fuse", "selected")


def extra_step(info: TensorInfo, sides: Sides) -> Step | None:
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
            action="fuse" if sides.selection.covers(name) and info.kind.fusible else "copy",
            why=f"the base ties it to {tied}",
            dtype=sides.dtype.code if sides.dtype else base.stored,
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
            dtype=sides.dtype.code if sides.dtype and info.kind.fusible else info.stored,
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


def tied_keys(steps: Sequence[Step], sides: Sides) -> list[Step]:
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
