"""Patches applied another way than they were made: with another strength, several over one base, or summed up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint import Asked
from ..checkpoint.open import open_whole
from ..checkpoint.output.guard import refuse_output
from ..errors import CheckpointError, MethodError
from ..patch.apply import APPLIED, unpack
from ..patch.reference import open_stored
from ..patch.source import PatchedSource
from ..progress import Progress, silent
from ..ref import ModelRef, find_model, with_patches


def refuse_strength(strength: float | None, patches: Sequence[Asked]) -> None:
    """Raise MethodError where a strength is none for patches."""
    if strength is None:
        return
    if not (math.isfinite(strength) and strength > 0):
        raise MethodError(f"`gamma` must be larger than 0, got {strength:g}", options=["gamma"])
    if len(patches) != 1:
        raise MethodError(f"`gamma` is that of one patch, got {len(patches)}", options=["gamma"])


def apply_patches(
    base: Asked,
    patches: Sequence[Asked],
    *,
    output: Path,
    gamma: float | None = None,
    add: bool = False,
    command: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> bool:
    """Write the model that patches make of their base; return whether its files are those that were packed.

    Args:
        patches: One; or several of one base, which change other tensors each.
        gamma: The strength in place of the one that the patch was made with: the weights are those that a fuse with it
            writes.
        add: Sum up what several patches add to the base where they change the same tensors: task arithmetic with
            weights of 1.

    Raises:
        OtherBaseError: The base is another than a patch was made from; the sentence names the tensor.
        CheckpointError: Codes of quantised weights are to have another strength, or to be summed up.
        MethodError: The patch holds the result of one strength alone.
        SculptError: Nothing is left under the output's name.
    """
    refuse_strength(gamma, patches)
    ref = with_patches(base, patches)
    own = find_model(base)
    if len(patches) == 1:
        one = PatchedSource(ref, strength=gamma)
        if one.strength is None and not one.leaves_changes:
            return unpack(ref, output=output, overwrite=overwrite, progress=progress).is_exact
    refuse_output(output, [ref], APPLIED, overwrite=overwrite)
    # Only here, as importing what a fuse is made of takes as long as applying a patch to 30 MB.
    from ..methods import Passthrough, TaskArithmetic
    from ..plan.options import Policies
    from ..plan.plan import make_plan
    from .fuse import execute
    from .prepared import prepare_plan
    from .settings import Settings

    if gamma is None and not add:  # each tensor is one patch's, whatever its dtype
        settings, method = Settings(), Passthrough()
        plan = make_plan([PatchedSource(ref)], lambda _: method, settings.request())
    else:
        opened = open_stored(own)
        refs: Sequence[ModelRef] = [with_patches(base, [patch]) for patch in patches] if add else [ref]
        _refuse_codes(refs)
        tuned = [PatchedSource(each, opened if each.base == own else None, strength=gamma) for each in refs]
        # Whatever a patch's model has in another way than the base is taken.
        taken = Policies(on_missing="drop", on_extra="take-tuned", on_mismatch="take-tuned", on_nonfinite="keep")
        settings = Settings(policies=taken, recipe=None if gamma is None else {"gamma": gamma})
        method = TaskArithmetic().for_models(len(tuned))
        plan = make_plan([opened, *tuned], lambda _: method, settings.request())
    prepared = prepare_plan(plan, output=output, settings=settings)
    execute(prepared, command=command, overwrite=overwrite, progress=progress)
    return False


def _refuse_codes(refs: Sequence[ModelRef]) -> None:
    for ref in refs:
        if open_whole(ref).decoded:
            raise CheckpointError(
                f"`{ref}` is quantised: its codes can have no other strength, and cannot be added up",
                hint="use patches of the unquantised models",
            )
