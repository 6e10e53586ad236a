"""What the commands do, as functions. `import sculpt` offers them; nothing heavy is imported until one is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .fusion.arithmetic.two_sided import Protection
from .fusion.checkpoint import find_model
from .fusion.errors import MethodError
from .fusion.methods import AdaDare, Method, TwoSided
from .fusion.progress import Progress, silent
from .fusion.record.manifest import Manifest
from .fusion.run.calibration import Calibration, GeneralSide, Given, PathLike
from .fusion.run.fuse import Prepared, execute, prepare
from .fusion.run.settings import Settings
from .measuring import statistics

if TYPE_CHECKING:
    from .live.load_check import LoadReport

PROTECTED = TwoSided()  # the method where the base is protected, unless another is asked for
# AdaDARE-γ's options there, unless they are given: what is to be held back is held back by the curvature.
ADADARE_PROTECTED = {"gamma": 1.0, "sparsity": 0.0}
MOST_NAMED = 3  # models in the name of an output


def made_by(method: type[Method], *, protects: bool) -> str:
    """Return what an output is named after: a method, and a protection before it."""
    return f"{TwoSided.name}-{method.name}" if protects and not method.protects else method.name


def default_output(tuned: Sequence[PathLike], ending: str) -> Path:
    """Return `<tuned>-<ending>`, beside the first tuned checkpoint: `sft-two-sided`, `math-code-ties`."""
    found = [find_model(path) for path in tuned]
    others = [other.beside("").name for other in found[1:]] if len(found) <= MOST_NAMED else [f"and-{len(found) - 1}"]
    return found[0].beside("".join(f"-{part}" for part in (*others, ending)))


def prepare_fuse(
    base: PathLike,
    tuned: PathLike | Sequence[PathLike],
    *,
    output: PathLike | None = None,
    method: Method | None = None,
    settings: Settings | None = None,
    overwrite: bool = False,
) -> Prepared:
    """Return a fuse that is planned from headers alone and checked, with nothing written yet.

    Raises:
        SculptError: Whatever could be found out before the long part starts.
    """
    many = [Path(tuned)] if isinstance(tuned, (Path, str)) else [Path(path) for path in tuned]
    method = method or AdaDare()
    protects = settings is not None and settings.protection is not None
    target = Path(output) if output is not None else default_output(many, made_by(type(method), protects=protects))
    if output is None and settings is not None and settings.emit == "patch":
        target = target.with_name(f"{target.name}.safetensors")
    if settings is not None and settings.tokenizer is not None:
        from .fusion.recipe.prepare import prepare_recipe, recipe_of

        recipe = recipe_of(method, base, many)
        return prepare_recipe(recipe, output=target, near=Path(), settings=settings, overwrite=overwrite)
    return prepare(Path(base), many, output=target, method=method, settings=settings, overwrite=overwrite)


def check_output(prepared: Prepared, *, always: bool = False) -> LoadReport | None:
    """Return how transformers would load the output; None where the inputs' own word is enough.

    Names, shapes and configuration that are, all together, those of one input folder are looked at only if `always`;
    that they are costs nothing to find out.

    Raises:
        ModelError: It would not load as it should.
    """
    from .fusion.plan.configuration import tensors_of
    from .fusion.run.outcome import blocks_of, is_as_an_input

    if not prepared.settings.load_check or (not always and is_as_an_input(prepared)):
        return None
    from .live.load_check import check_loads

    plan = prepared.plan
    return check_loads(tensors_of(plan), prepared.config, blocks=blocks_of(plan), inputs=(plan.base, *plan.tuned))


def pack(
    base: PathLike, model: PathLike, *, output: PathLike, overwrite: bool = False, progress: Progress = silent
) -> int:
    """Write a patch that makes a model of its base, to the bit; return its size in bytes.

    Raises:
        SculptError: One sentence about what is wrong; nothing is left under the output's name.
    """
    from .fusion.patch.pack import pack

    return pack(base, model, output=Path(output), overwrite=overwrite, progress=progress)[0]


def apply_patch(
    base: PathLike,
    *patches: PathLike,
    output: PathLike,
    gamma: float | None = None,
    add: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> bool:
    """Write the model that patches make of their base; return whether its files are the very ones that were packed.

    Args:
        patches: One; or several of one base that change other tensors each.
        gamma: Another strength than the one that the patch was made with.
        add: Sum up what patches add to the base where they change the same tensors: task arithmetic with weights of 1.

    Raises:
        SculptError: The base is another than a patch was made from, or whatever else is wrong, in one sentence.
    """
    from .fusion.run.patched import apply_patches

    return apply_patches(
        base, patches, output=Path(output), gamma=gamma, add=add, overwrite=overwrite, progress=progress
    )


def load(
    base: PathLike,
    *patches: PathLike,
    gamma: float | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Any:
    """Return a transformers model, in eval mode, with patches applied while it is loaded; nothing is written.

    Args:
        base: Any model that commands take; with patches, the one that they were made from.
        gamma: Another strength than the one that the patch was made with.

    Raises:
        SculptError: The base is another than a patch was made from, or transformers cannot load it.
    """
    from .fusion.checkpoint import open_checkpoint
    from .fusion.ref import with_patches
    from .fusion.run.patched import refuse_strength
    from .live.model import load_model

    refuse_strength(gamma, patches)
    ref = with_patches(base, patches)
    if gamma is None:
        source = open_checkpoint(ref)
    else:
        from .fusion.patch.source import PatchedSource

        source = PatchedSource(ref, strength=gamma)
    return load_model(source, device=device, dtype=dtype, trust_remote_code=trust_remote_code, may_stream=False).model


def fuse(
    base: PathLike,
    tuned: PathLike | Sequence[PathLike],
    *,
    output: PathLike | None = None,
    method: Method | None = None,
    hessian: Given | None = None,
    data: PathLike | None = None,
    protect: Given | GeneralSide | Sequence[Given | GeneralSide] | None = None,
    protection: Protection | None = None,
    calibration: Calibration | bool = True,
    settings: Settings | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """Fuse a base and its fine-tune into a new checkpoint; return what was done.

    Args:
        output: A folder that does not exist yet; `<tuned>-<method>` by default.
        method: By default AdaDARE-γ with the paper's settings; where the base is protected, two-sided curvature alone.
        hessian: Statistics from `calibrate`, as a file or in memory.
        data: Without `hessian`: calibrate on this first; by default on the text that ships with the package, or where
            the base is protected on nothing: the delta stands in.
        protect: What the base is to stay good at: general data, `default` for the general set that ships, or the
            base's own statistics; or several of these, as `GeneralSide`s with a weight or names such as
            `images.jsonl:3`. Two-sided curvature then mixes each delta before the method sees it.
        protection: How; by default with full matrices, and the λ that serves best what tells the target's inputs.
        calibration: False is H = I; a `Calibration` sets everything.

    Raises:
        SculptError: One sentence about what is wrong; nothing is left under the output's name.
    """
    if isinstance(calibration, bool):
        calibration = Calibration(hessian=hessian, data=data, enabled=calibration)
        if protect is not None:
            calibration = replace(calibration, protect=protect)
    elif hessian is not None or data is not None or protect is not None:
        raise MethodError("give `hessian`, `data` and `protect` within `calibration`, or give no `calibration`")
    if protect is not None or protection is not None or (method is not None and method.protects):
        settings = replace(settings or Settings(), protection=protection or Protection())
        method = method or PROTECTED
    prepared = prepare_fuse(base, tuned, output=output, method=method, settings=settings, overwrite=overwrite)
    check_output(prepared)
    with statistics(prepared, calibration, progress=progress) as found:
        return execute(
            prepared,
            curvature=found.curvature,
            provenance=found.provenance,
            refuse_changed=found.refuse_changed,
            compare=found.compare,
            overwrite=overwrite,
            progress=progress,
        )
