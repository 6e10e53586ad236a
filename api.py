"""What the commands do, as functions. `import sculpt` offers them; nothing heavy is imported until one is called."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .fusion.arithmetic.budget import Budget
from .fusion.arithmetic.two_sided import Protection
from .fusion.checkpoint import Asked, find_model
from .fusion.checkpoint.given import Given as Model
from .fusion.checkpoint.given import in_folder, is_in_memory, takes_models
from .fusion.checkpoint.output.scratch import Scratch
from .fusion.errors import MethodError, Way
from .fusion.methods import AdaDare, Method, TwoSided
from .fusion.methods.named import method_named
from .fusion.progress import Progress, silent, watched
from .fusion.record.manifest import Manifest
from .fusion.run.bounds import Bounds, measure_bounds
from .fusion.run.calibration import Calibration, GeneralSide, Given, PathLike
from .fusion.run.fuse import execute
from .fusion.run.prepared import Prepared, prepare
from .fusion.run.settings import Settings
from .measuring import statistics, with_found

if TYPE_CHECKING:
    from .fusion.checkpoint.output.processes import Processes
    from .fusion.recipe.over import Over
    from .fusion.recipe.recipe import Recipe
    from .live.load_check import LoadReport

logger = logging.getLogger(__name__)

PROTECTED = TwoSided()  # the method where the base is protected, unless another is asked for
# AdaDARE-γ's options there, unless they are given: what is to be held back is held back by the curvature.
ADADARE_PROTECTED = {"gamma": 1.0, "sparsity": 0.0}
ONE_PERCENT = 0.01  # of a tensor, which `bound` takes as the budget where none is given
MOST_NAMED = 3  # models in the name of an output


def made_by(method: type[Method], *, protects: bool) -> str:
    """Return what an output is named after: a method, and a protection before it."""
    return f"{TwoSided.name}-{method.name}" if protects and not method.protects else method.name


def default_output(tuned: Sequence[Asked], ending: str) -> Path:
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
    elif output is None and all(find_model(path).path.suffix == ".safetensors" for path in (base, *many)):
        target = target.with_name(f"{target.name}.safetensors")  # a file of files
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

    return pack(base, model, output=Path(output), overwrite=overwrite, progress=progress).nbytes


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
    base: Asked,
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
        device, dtype: Names of torch's. The dtype `auto` is float32 on a CPU, and that of most weights elsewhere.

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


@watched
def fuse(
    base: Model,
    tuned: Model | Sequence[Model],
    *,
    output: PathLike | None = None,
    method: Method | str | None = None,
    hessian: Given | None = None,
    data: PathLike | None = None,
    protect: Given | GeneralSide | Sequence[Given | GeneralSide] | None = None,
    protection: Protection | None = None,
    calibration: Calibration | bool = True,
    settings: Settings | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """Fuse a base and its fine-tunes into a new checkpoint; return what was done.

    The result is a manifest, which functions that take a model take in its place: `sculpt.load(fused)` is a
    transformers model, `sculpt.state_dict(fused)` its tensors.

    Args:
        base, tuned: Folders, files or names on the hub; or models of transformers or PEFT, or tensors by name, that are
            in memory. Those are written to a temporary folder first, and not changed. One fine-tune, or a list.
        output: A folder that does not exist yet; `<tuned>-<method>` by default. Where a fine-tune is in memory, the
            default is a temporary folder that is there as long as what is returned.
        method: A method, or its name with options, such as `ties:density=0.2`. By default AdaDARE-γ with the paper's
            settings; where the base is protected, two-sided curvature alone.
        hessian: Statistics from `calibrate`, as a file or in memory.
        data: Without `hessian`: calibrate on these samples first. If neither is given, the file that `calibrate` wrote
            beside the fine-tune is used where it fits. If there is none, the model is calibrated on the text that ships
            with the package; a protected fuse uses the delta in place of samples.
        protect: What the base is to stay good at: general data, `default` for the general set that ships, or the
            base's own statistics; or several of these, as `GeneralSide`s with a weight or names such as
            `images.jsonl:3`. Two-sided curvature then mixes each delta before the method sees it.
        protection: How; by default with full matrices, and the λ that serves best what tells the target's inputs.
        calibration: False is H = I; a `Calibration` sets everything.
        progress: Told what is done, of how much, and what it is. Default: a bar in a notebook, else nothing.

    Raises:
        SculptError: One sentence about what is wrong; nothing is left under the output's name.
    """
    settings = settings or Settings()
    if isinstance(calibration, bool):
        own = {"seed": settings.seed, "device": settings.device}  # as of a command
        calibration = Calibration(hessian=hessian, data=data, protect=protect, enabled=calibration, **own)
    elif hessian is not None or data is not None or protect is not None:
        raise MethodError("give `hessian`, `data` and `protect` either in `calibration` or as arguments, not both")
    method = method_named(method) if isinstance(method, str) else method
    if protection is not None and settings.protection is not None:
        raise MethodError("give `protection` either in `settings` or as an argument, not both")
    protection = protection or settings.protection
    if calibration.protect is not None or protection is not None or (method is not None and method.protects):
        settings = replace(settings, protection=protection or Protection())
        method = method or PROTECTED
    many = list(tuned) if isinstance(tuned, (list, tuple)) else [tuned]
    held = None
    if output is None and any(map(is_in_memory, many)):
        held = Scratch()
        output = held.folder / "fused"
    with ExitStack() as stack:
        paths = [in_folder(one, f"tuned-{k}" if len(many) > 1 else "tuned", stack) for k, one in enumerate(many, 1)]
        prepared = prepare_fuse(
            in_folder(base, "base", stack), paths, output=output, method=method, settings=settings, overwrite=overwrite
        )
        return replace(_executed(prepared, calibration, overwrite=overwrite, progress=progress), held=held)


def _executed(prepared: Prepared, calibration: Calibration, *, overwrite: bool, progress: Progress) -> Manifest:
    check_output(prepared)
    calibration, notes = with_found(prepared, calibration)
    for note in (*prepared.plan.warnings, *notes):
        logger.warning("%s", note)
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


@dataclass(frozen=True, kw_only=True)
class PlannedRecipe:
    """One recipe of a file, ready to be run; `prepared` is None where it waits for the results of others."""

    output: Path
    prepared: Prepared | None
    calibration: Calibration


def plan_recipes(
    recipe: PathLike,
    *,
    output: Path,
    over: Over,
    base: Path | None = None,
    tuned: Sequence[Path] = (),
    parts: Path | None = None,
    may_exist: Callable[[Path], bool] = lambda _: False,
    dry_run: bool = False,
) -> Iterator[PlannedRecipe]:
    """Yield the recipes of a file in the order in which they use each other's results; each is planned when asked for.

    Args:
        over: What is asked for over what they say.
        may_exist: Whether an output that is there is no reason to refuse.
        dry_run: Whether none is run, so that those that use others cannot be planned.

    Raises:
        SculptError: A recipe does not fit, or names no models.
    """
    from .fusion.recipe.prepare import prepare_recipe
    from .fusion.recipe.read import find_recipe, read_recipes
    from .fusion.recipe.several import in_order

    file = find_recipe(str(recipe))
    folder = parts or output.with_name(output.name + "-parts")
    for one, target in in_order(read_recipes(file), output, folder):
        found = _between(one, base, tuned)
        calibration = over.calibration_of(found)
        waits = any(Path(name.path).parent == folder and not Path(name.path).exists() for name in found.named_models())
        if dry_run and waits:
            yield PlannedRecipe(output=target, prepared=None, calibration=calibration)
            continue
        protection = over.protection_of(found, calibration)
        prepared = prepare_recipe(
            with_protected_defaults(found, protection),
            output=target,
            near=file.parent,
            settings=replace(over.settings_of(found), protection=protection),
            overwrite=may_exist(target),
        )
        yield PlannedRecipe(output=target, prepared=prepared, calibration=calibration)


def _between(recipe: Recipe, base: Path | None, tuned: Sequence[Path]) -> Recipe:
    """Return the recipe with these models in place of those that it leaves open."""
    names = [Way(option="base", effect="names what deltas are taken from"), Way(option="tuned", effect="a fine-tune")]
    if base is None and not tuned:
        if not recipe.models and not recipe.slices:
            raise MethodError("the recipe names no models", ways=names)
        return recipe
    if base is None or not tuned:
        raise MethodError("`base` and `tuned` must be given together", options=["base", "tuned"])
    return recipe.between(base, tuned)


def with_protected_defaults(recipe: Recipe, protection: Protection | None) -> Recipe:
    """Return the recipe with what AdaDARE-γ does by default where the base is protected: as `fuse` does."""
    if protection is None or recipe.method is not AdaDare:
        return recipe
    return replace(recipe, defaults={**ADADARE_PROTECTED, **recipe.defaults})


@watched
def merge(
    recipe: PathLike,
    *,
    output: PathLike,
    base: PathLike | None = None,
    tuned: PathLike | Sequence[PathLike] = (),
    parts: PathLike | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    **chosen: Any,
) -> Manifest:
    """Merge models by a recipe, sculpt's own YAML or mergekit's; return what was done last.

        sculpt.merge("recipe.yaml", output="merged", seed=3, data="train.jsonl")

    Args:
        recipe: A file, or the name of a recipe that ships.
        base, tuned: For a recipe that names no models.
        parts: Folder of the named recipes that others use. Default: `<output>-parts`.
        chosen: Fields of `Settings`, `Selection`, `Policies`, `Calibration` and `Protection`, over what the recipe
            says; `seed`, `device`, `dtype` and `memory` are those of `Settings`.

    Raises:
        SculptError: One sentence about what is wrong; nothing is left under the output's name.
    """
    from .fusion.recipe.over import Over

    many = [tuned] if isinstance(tuned, (str, Path)) else tuned
    made: Manifest | None = None
    for one in plan_recipes(
        recipe,
        output=Path(output),
        over=Over.of(chosen),
        base=None if base is None else Path(base),
        tuned=[Path(path) for path in many],
        parts=None if parts is None else Path(parts),
        may_exist=lambda _: overwrite,
    ):
        assert one.prepared is not None
        settings = one.prepared.settings
        calibration = replace(one.calibration, seed=settings.seed, device=settings.device)
        if not (one.prepared.method.uses_curvature or settings.protection is not None):
            calibration = replace(calibration, enabled=False)
        made = _executed(one.prepared, calibration, overwrite=overwrite, progress=progress)
    assert made is not None  # a file without a recipe was refused
    return made


@takes_models("model")
def check_loads(model: Model) -> LoadReport:
    """Return how transformers would load a model, from its headers alone.

    Raises:
        ModelError: Its names, shapes or kinds of layers are not those of the class that `config.json` names.
    """
    from .fusion.patch.reference import open_stored
    from .live.load_check import check_loads

    opened = open_stored(find_model(model))
    return check_loads({opened.name_in_file(name): info for name, info in opened.tensors.items()}, opened.config)


@takes_models("model")
def state_dict(model: Model) -> dict[str, Any]:
    """Return all tensors of a model as torch has them, by name, on the CPU, in the dtype in which they are stored.

    Args:
        model: Whatever functions take as a model; of a quantised one the weights that its codes stand for.

    Raises:
        CheckpointError: It cannot be read.
    """
    from .fusion.checkpoint import open_checkpoint
    from .live.model import read_tensor

    source = open_checkpoint(model)
    return {name: read_tensor(source, name) for name in source.tensors}


@watched
@takes_models("base", "tuned")
def bound(
    base: Model,
    tuned: Model,
    *,
    eta: float | None = None,
    eta_relative: float | None = None,
    settings: Settings | None = None,
    processes: Processes | None = None,
    progress: Progress = silent,
) -> Bounds:
    """Return how strong an injection may be when the L1 distance of each tensor to the base has a budget.

    Theorem 2 of AdaDARE-γ: the expected L1 distance is γ·Σ|δ|, so γ may be η/Σ|δ|.

    Args:
        eta: η of each tensor, an L1 distance.
        eta_relative: η as a fraction of the tensor's L1 norm in the base. Default: 0.01, unless `eta` is given.
        settings: Its selection, policies, device and threads are heeded.
        processes: That have met, and look at a share of the tensors each.

    Raises:
        SculptError: The two cannot be fused, or a tensor holds NaN or infinity.
    """
    if eta is None and eta_relative is None:
        eta_relative = ONE_PERCENT
    settings = settings or Settings()
    found = measure_bounds(
        base,
        tuned,
        selection=settings.selection,
        policies=settings.policies,
        device=settings.device,
        threads=settings.threads,
        processes=processes,
        progress=progress,
    )
    return Bounds(tensors=found, budget=Budget(eta=eta, eta_relative=eta_relative))
