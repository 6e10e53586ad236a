"""`sculpt fuse` and a command for each other method: the same pipeline, the method's own options."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..fusion.methods import METHODS, AdaDare, Method
from ..fusion.places.names import url_of
from .flags import FlagGroup, flag_of, given_flags, with_options
from .options import (
    CALIBRATION,
    POLICIES,
    PROTECTION,
    SELECTION,
    SETTINGS,
    TARGET,
    AsJson,
    BasePath,
    ConfigName,
    Target,
    TunedPaths,
    protection_of,
    refuse_idle,
    refuse_missing,
)

if TYPE_CHECKING:
    from ..fusion.arithmetic.two_sided import Protection
    from ..fusion.checkpoint.output.steps import Steps
    from ..fusion.plan.options import Policies, Selection
    from ..fusion.run.calibration import Calibration
    from ..fusion.run.prepared import Prepared
    from ..fusion.run.settings import Settings

SILENT = (
    "--overwrite",
    "--json",
    "--stream",
    "--public",
    "-y",
    "--yes",
    "-q",
    "--quiet",
    "-v",
    "--verbose",
)  # flags that change no bit of an output
EXAMPLES = {
    "fuse": [
        "sculpt fuse base/ sft/ --gamma 0.5 --sparsity 0.9",
        "sculpt fuse base/ sft/ --hessian hessian.safetensors -o fused/",
        "sculpt fuse base/ sft/ --data train.jsonl --allocation exact",
        "sculpt fuse base/ sft/ --no-calibration --include 'model.layers.*' --dry-run",
        "sculpt fuse base/ sft/ --protect default",
        "sculpt fuse base/ sft/ --data train.jsonl --protect default --protect-weight 1",
        "sculpt fuse base/ math/ code/ --protect default",
        "sculpt fuse base/ sft/ --config adadare-lora --gamma 0.6",
    ],
    "dare": ["sculpt dare base/ sft/ --sparsity 0.9 --scale 1.0"],
    "dare-ties": ["sculpt dare-ties base/ code/ math/ --sparsity 0.8 --weights 1,0.5"],
    "della": ["sculpt della base/ code/ math/ --density 0.3"],
    "fisher": ["sculpt fisher base/ code/ math/ --hessian code.safetensors --hessian math.safetensors"],
    "iso-c": ["sculpt iso-c base/ code/ math/ --scale 0.7"],
    "lines": [
        "sculpt lines base/ sft/ --alpha 0.3 --beta 0.7",
        "sculpt lines base/ code/ math/ --weights 0.5 --alpha 0.5 --beta 0.5",
    ],
    "linear": ["sculpt linear one/ two/ three/ --weights 2,1,1"],
    "model-stock": ["sculpt model-stock base/ run1/ run2/ run3/"],
    "regmean": [
        "sculpt regmean base/ code/ math/ --data code.jsonl --data math.jsonl",
        "sculpt regmean base/ code/ math/ --hessian full-code.safetensors --hessian full-math.safetensors --alpha 0.5",
    ],
    "saliency": ["sculpt saliency base/ sft/ --density 0.1 --hessian hessian.safetensors"],
    "slerp": ["sculpt slerp one/ two/ --t 0.3"],
    "two-sided": [
        "sculpt two-sided base/ sft/ --data train.jsonl",
        "sculpt two-sided base/ sft/ --data train.jsonl --protect general.jsonl --protect-weight 3",
        "sculpt two-sided base/ math/ code/",
    ],
    "tailor": [
        "sculpt tailor base/ sft/ --hessian full-hessian.safetensors --sparsity 0.9",
        "sculpt tailor base/ sft/ --data train.jsonl --compensation none",
    ],
    "task-arithmetic": [
        "sculpt task-arithmetic base/ sft/ --scale 0.5",
        "sculpt task-arithmetic base/ code/ math/ --weights 0.6,0.4",
    ],
    "tsv-m": ["sculpt tsv-m base/ code/ math/ chat/"],
    "wudi": ["sculpt wudi base/ code/ math/", "sculpt wudi base/ code/ math/ --no-normalize"],
}


def run_fuse(
    base: Path,
    tuned: Sequence[Path],
    *,
    method: Method,
    target: Target,
    settings: Settings,
    selection: Selection,
    policies: Policies,
    calibration: Calibration,
    protection: Protection | None = None,
    config: str | None = None,
    given: Collection[str] = (),
    json: bool,
    steps: Steps | None = None,
) -> None:
    """Plan, by a recipe if one is given, and run the plan.

    Args:
        steps: Of a run that makes further outputs.
    """
    from ..api import ADADARE_PROTECTED, PROTECTED, prepare_fuse
    from ..fusion.arithmetic.two_sided import Protection

    measures = method.uses_curvature or method.protects or calibration.protect is not None
    refuse_missing([base, *tuned], calibration.files() if measures else ())
    settings = replace(settings, selection=selection, policies=policies)
    protection = protection or Protection()
    if config is None:
        calibration = calibration.protecting() if method.protects else calibration
        settings = replace(settings, protection=protection_of(protection, calibration, given))
        if settings.protection is not None and isinstance(method, AdaDare):
            left = {name: value for name, value in ADADARE_PROTECTED.items() if name not in given}
            own = {field.name for field in fields(method)} & set(given)
            method = replace(method, **left) if own else PROTECTED
        goes_on = steps is not None and target.output is not None and steps.has_appeared(target.output)
        prepared = prepare_fuse(
            base, tuned, output=target.output, method=method, settings=settings, overwrite=target.may_exist or goes_on
        )
    else:
        from .recipes import prepare_named

        prepared, calibration = prepare_named(
            config, base, tuned, method, settings, target, calibration, protection, given
        )
    run_prepared(
        prepared,
        calibration,
        dry_run=target.dry_run,
        overwrite=target.overwrite,
        json=json,
        steps=steps,
        given=given,
    )


def run_prepared(
    prepared: Prepared,
    calibration: Calibration,
    *,
    dry_run: bool,
    overwrite: bool,
    json: bool,
    steps: Steps | None = None,
    given: Collection[str] = (),
) -> None:
    """Calibrate where the method wants it, fuse, and show what was done; or show the plan."""
    from ..api import check_output
    from ..fusion.checkpoint.identity import digest_of_data
    from ..fusion.run.fuse import execute
    from ..fusion.run.prepared import resume_facts
    from ..measuring import statistics, with_found
    from . import fuse_view
    from .console import print_json, quiet_environment, say, warn
    from .progress import progress_bar

    protects = prepared.settings.protection is not None
    if not (prepared.method.uses_curvature or protects):
        refuse_idle(calibration, prepared.method, given)
    calibration = replace(calibration, seed=prepared.settings.seed, device=prepared.settings.device)
    refuse_missing([], calibration.files())
    calibration, notes = with_found(prepared, calibration)
    if steps is not None:
        data = {str(file): digest_of_data(file) for file in calibration.files()}
        facts = {"fuse": resume_facts(prepared, None), "calibration": repr(calibration), "data": data}
        if steps.is_made(prepared.output, facts, prepared.settings.kind(prepared.output), overwrite=overwrite):
            say(f"{prepared.output} was already made by the run that is resumed")
            return
    for warning in prepared.plan.warnings:
        warn(warning)
    for note in notes:
        say(note)
    if dry_run:
        _show_plan(prepared, calibration, json=json)
    else:
        fuse_view.show_notes(prepared.plan)
    quiet_environment()
    if dry_run and find_spec("torch") is None:
        say("note: torch is not installed, so it was not checked whether transformers could load the output")
    elif (loads := check_output(prepared, always=dry_run)) is not None:
        say(loads.told)
    if dry_run:
        return
    measures = (prepared.method.uses_curvature or protects) and calibration.enabled and calibration.hessian is None
    if measures:
        say(_of_the_task(calibration, prepared.settings.protection))
    if protects:
        say(f"protecting the base on {' and '.join(map(str, calibration.sides))}")
        measures = measures or not all(side.is_statistics for side in calibration.sides)
    with (
        progress_bar("calibrating and fusing", unit="steps", hidden=not measures) as report_blocks,
        statistics(prepared, calibration, progress=report_blocks) as found,
        progress_bar("fusing", hidden=measures) as report,
    ):
        manifest = execute(
            prepared,
            curvature=found.curvature,
            provenance=found.provenance,
            refuse_changed=found.refuse_changed,
            compare=found.compare,
            command=command_line(),
            overwrite=overwrite,
            progress=report,
        )
        for note in found.notes:
            say(note)
        fuse_view.show_uncovered(manifest, found)
        fuse_view.show_grown(manifest)
    if json:
        print_json({"output": str(prepared.output), **manifest.as_json()})
    else:
        fuse_view.show_result(prepared, manifest)


INSTEAD_OF_SAMPLES = {  # by where the target's curvature comes from; without samples `data` is refused
    "data": "",
    "identity": ": all inputs of a layer count alike",
    "general": ": the diagonal of the general side stands in for them",
}
BY_DELTAS = ": the fine-tuning deltas stand in for them"


def _of_the_task(calibration: Calibration, protection: Protection | None) -> str:
    """Return what tells the inputs of the task, in a sentence."""
    from ..fusion.run.calibration import FROM_DELTA

    data = calibration.data if isinstance(calibration.data, (list, tuple)) else [calibration.data]
    named = [str(path) for path in data if path is not None and str(path) != FROM_DELTA]
    if named:
        others = ", and for the other models the deltas stand in for samples" if len(named) < len(data) else ""
        return f"calibrating on {', '.join(named)}{others}"
    if protection is None:
        return "calibrating on the text that ships with sculpt (--data names your own)"
    return f"no samples of the task were named (--data){INSTEAD_OF_SAMPLES.get(protection.target, BY_DELTAS)}"


def _show_plan(prepared: Prepared, calibration: Calibration, *, json: bool) -> None:
    from . import fuse_view
    from .console import print_json, say

    if prepared.output.exists():
        say(f"note: `{prepared.output}` exists; `--overwrite` replaces it")
    if json:
        print_json(fuse_view.plan_json(prepared, calibration))
    else:
        fuse_view.show_plan(prepared, calibration)


def command_line() -> str:
    """Return the command as it was typed, for the manifest: without what changes no bit, and where files lie."""
    import shlex

    from ..fusion.run.settings import FREE

    left_out = {"-o", "--output", "--push", "--calibration-memory", "--log-file", *map(flag_of, FREE)}
    told, words = ["sculpt"], iter(sys.argv[1:])
    for word in words:
        flag, equals, value = word.partition("=")
        if word in left_out:
            next(words, None)  # its value
        elif flag not in left_out and word not in SILENT:
            is_set = flag.startswith("--") and equals
            told.append(f"{flag}={_own_name(value)}" if is_set else _own_name(word))
    return shlex.join(told)


def _own_name(word: str) -> str:
    """Return the name of a file or folder that a word of the command line is, or the word."""
    if (url := url_of(word)) is not None:
        return url.told  # passwords and keys are nobody's business
    is_place = word.startswith(("/", "~", "./", "../")) or ("/" in word and Path(word).exists())
    return Path(word).resolve().name if is_place else word.rstrip("/")


def help_text(method: type[Method], examples: Sequence[str]) -> str:
    """Return the help of a method's command: its first sentence, source and runnable examples."""
    import inspect

    first = inspect.cleandoc(method.__doc__ or "").partition("\n\n")[0]
    lines = "".join(f"\n\n    {example}" for example in examples)
    return f"{method.title}: {first}\n\nSource: {method.source}.\n\n**Examples**{lines}"


# Where the method has no use for curvature of its own, it is measured for a protection alone, and shown there.
FOR_PROTECTION = replace(CALIBRATION, panel="Protection")


def _command(method: type[Method]) -> Callable[..., None]:
    """Return the command of a method, with curvature or without.

    One for a single tuned model takes several too: a protection puts them together.
    """
    groups = {
        "method": FlagGroup(of=method, panel=method.title),
        "calibration": CALIBRATION if method.uses_curvature else FOR_PROTECTION,
        "protection": PROTECTION,
        "target": TARGET,
        "selection": SELECTION,
        "policies": POLICIES,
        "settings": SETTINGS,
    }

    def command(
        ctx: typer.Context,
        base: BasePath,
        tuned: TunedPaths,
        config: ConfigName = None,
        json: AsJson = False,
        **options: object,
    ) -> None:
        run_fuse(base, tuned, config=config, given=given_flags(ctx), json=json, **options)  # pyright: ignore[reportArgumentType]

    return with_options(**groups)(command)


def register(app: typer.Typer) -> None:
    """Add `fuse` (AdaDARE-γ) and one command for each other method."""
    for name, method in METHODS.items():
        if method.max_models == 0:
            continue  # for recipes only
        command = "fuse" if method is AdaDare else name
        examples = EXAMPLES.get(
            command, [f"sculpt {name} base/ {'code/ math/' if method.max_models is None else 'sft/'}"]
        )
        app.command(command, help=help_text(method, examples))(_command(method))
