"""From a recipe to a fuse that is planned: models opened, vocabularies aligned, a method for each tensor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint import Source, open_checkpoint
from ..checkpoint.json_file import read_json
from ..checkpoint.output.folder_sink import refuse_output
from ..dtypes import BY_TORCH_NAME
from ..errors import CheckpointError, MethodError
from ..methods import Method
from ..names import selects
from ..plan.plan import Plan, make_plan
from ..plan.step import Step
from ..run.fuse import Prepared, Settings, prepare_plan
from .layers import fraction_through, stacks, with_layers
from .recipe import ModelEntry, ModelName, Recipe
from .slices import SlicePlan, plan_slices
from .tokenizers import Finish, known_tokens, load_tokenizer, taken_from, union
from .vocabulary import Alignment, Member, align_vocabularies, aligned


def find_model(name: str, near: Path) -> Path:
    """Return the folder or file of a model: a path, also relative to the recipe, or a model in the hub's local cache.

    Raises:
        CheckpointError: It is nowhere; nothing is fetched.
    """
    for path in (Path(name), near / name):
        if path.exists():
            return path
    repository, _, revision = name.partition("@")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
    except (ImportError, OSError, ValueError):
        raise CheckpointError(
            f"`{name}` does not exist", hint="nothing is fetched: download the model first and name its folder"
        ) from None


def open_model(name: ModelName, near: Path) -> Source:
    """Return a model's checkpoint, its adapter on top."""
    opened = open_checkpoint(find_model(name.path, near))
    return opened if name.adapter is None else open_checkpoint(find_model(name.adapter, near), opened)


def prepare_recipe(
    recipe: Recipe, *, output: Path, near: Path, settings: Settings | None = None, overwrite: bool = False
) -> Prepared:
    """Open the inputs of a recipe, plan from their headers and check the output's place and the free disk.

    Args:
        near: The folder that paths in the recipe may be relative to.
        settings: In place of the recipe's own.

    Raises:
        SculptError: Anything that could be found out before the long part starts.
    """
    settings = settings or recipe.run
    names = recipe.named_models()
    opened = {name: open_model(name, near) for name in names}
    refuse_output(output, [checkpoint.path for checkpoint in opened.values()], overwrite=overwrite)
    facts: dict[str, Any] = {"content": recipe.content}
    write_tokens, alignment = None, None
    if recipe.vocabulary is not None:
        opened, alignment, write_tokens = _with_one_vocabulary(recipe, names, opened)
        digest = hashlib.sha256(alignment.own.tobytes() + repr(sorted(alignment.donors.items())).encode())
        facts["vocabulary"] = {"rows": alignment.num_rows, "digest": digest.hexdigest()}
    settings = replace(settings, recipe=facts)
    if recipe.slices:
        sliced = plan_slices(recipe, opened, settings)
    else:
        sliced = SlicePlan(plan=_plan_models(recipe, opened, settings), layers=())
    method = _first_method(sliced.plan)
    finish = _finish(write_tokens, alignment, sliced)
    return prepare_plan(sliced.plan, output=output, method=method, settings=settings, finish=finish)


def _first_method(plan: Plan) -> Method:
    """Return the method that stands for all in the manifest: that of the first tensor that is fused."""
    return next(step.method for step in plan.steps if step.method is not None)


def participants(
    base: ModelName | None, sources: Sequence[ModelEntry], method: type[Method]
) -> tuple[list[ModelEntry], bool]:
    """Return the models in the order of a plan, what stands for the base first, and whether that is one of the models.

    Raises:
        MethodError: There is a model too few.
    """
    own = next((source for source in sources if source.model == base), None)
    if base is not None:
        others = [source for source in sources if source.model != base]
        return [own or ModelEntry(model=base), *others], False
    if not sources:
        raise MethodError(f"{method.title} merges no models")
    return list(sources), True


def _plan_models(recipe: Recipe, opened: Mapping[ModelName, Source], settings: Settings) -> Plan:
    """Return the plan of whole models, with a method for each tensor that is fused."""
    order, baseless = participants(recipe.base, recipe.models, recipe.method)
    base, *tuned = [opened[source.model] for source in order]
    if not tuned:
        return _plan_alone(recipe, order[0], base, settings)
    counts = stacks(base.tensors)

    def method_of(name: str, own: Sequence[str]) -> Method:
        t = fraction_through(name, counts)
        probe = recipe.method_for(name, t, sources=order[:1], names=own[:1], origin_is_zero=baseless)
        counted = order if probe.counts_base or recipe.method.max_models == 0 else order[1:]
        names = own if len(counted) == len(order) else own[1:]
        found = recipe.method_for(name, t, sources=counted, names=names, origin_is_zero=baseless)
        return found.for_models(len(tuned))

    first = next(iter(base.tensors), "")
    general = method_of(first, [first] * len(order))
    if baseless and not general.counts_base:
        raise MethodError(f"{general.title} needs a base")
    plan = make_plan(
        base,
        tuned,
        method=general,
        selection=settings.selection,
        policies=settings.policies,
        config_from=settings.config_from,
        dtype=settings.dtype,
    )
    steps = []
    for step in plan.steps:
        kept = next((source for globs, source in recipe.keep if selects(globs, step.name)), None)
        if kept is not None and step.action == "fuse":
            steps.append(replace(step, action="copy", source=kept, num_fused=0, why="kept by a rule"))
        elif step.action == "fuse":
            steps.append(replace(step, method=method_of(step.name, _names_in(step))))
        else:
            steps.append(step)
    return replace(plan, steps=tuple(steps))


def _plan_alone(recipe: Recipe, source: ModelEntry, model: Source, settings: Settings) -> Plan:
    """Return the plan of one model by itself, as it is or scaled."""
    cast = BY_TORCH_NAME.get(settings.dtype or "")
    counts, steps = stacks(model.tensors), []
    for name, info in model.tensors.items():
        t = fraction_through(name, counts)
        method = recipe.method_for(name, t, sources=[source], names=[name], origin_is_zero=True).for_models(0)
        copied = not info.kind.fusible or method.identity == "base"
        steps.append(
            Step(
                name=name,
                action="copy" if copied else "fuse",
                why="taken as it is" if copied else "selected",
                dtype=cast.code if cast and info.kind.fusible else info.dtype,
                shape=info.shape,
                base=info,
                tuned=(),
                source="base",
                num_fused=0 if copied else info.num_elements,
                key=name,
                curvature=name,
                method=method,
            )
        )
    return Plan(base=model, tuned=(), steps=tuple(steps), renamings=(), notes=())


def _names_in(step: Step) -> list[str]:
    return [step.name if info is None else info.name for info in (step.base, *step.tuned)]


def _with_one_vocabulary(
    recipe: Recipe, names: Sequence[ModelName], opened: Mapping[ModelName, Source]
) -> tuple[dict[ModelName, Source], Alignment, Finish]:
    """Return the models with their vocabularies aligned, how, and what writes the output's tokenizer."""
    vocabulary = recipe.vocabulary
    assert vocabulary is not None
    tokenizers = {name: load_tokenizer(opened[name].folder, str(name)) for name in names}
    tokens = {name: known_tokens(tokenizers[name], opened[name]) for name in names}
    source = names[0] if isinstance(vocabulary.source, str) else vocabulary.source
    if source not in tokenizers:
        raise MethodError(f"the tokenizer is to come from `{source}`, which takes no part in the merge")
    if vocabulary.source == "union":
        found = union([tokenizers[n] for n in names], [tokens[n] for n in names], vocabulary.tokens)
        like = None
    else:
        folder = opened[source].folder
        assert folder is not None  # its tokenizer was loaded from there
        found = taken_from(folder, tokenizers[source], opened[source], vocabulary.tokens)
        like = names.index(source) if len(found.tokens) == len(tokens[source]) else None
    members = [Member(label=str(name), checkpoint=opened[name], tokens=tokens[name]) for name in names]
    alignment = align_vocabularies(
        members,
        found.tokens,
        base=0 if recipe.base is not None else None,
        sources=vocabulary.tokens,
        labels={name: k for k, name in enumerate(names)},
        pad_to_multiple_of=vocabulary.pad_to_multiple_of,
        like=like,
    )
    return dict(zip(names, aligned(members, alignment), strict=True)), alignment, found.write


def _finish(write_tokens: Finish | None, alignment: Alignment | None, sliced: SlicePlan) -> Finish | None:
    """Return what brings tokenizer and configuration into line with the weights, or None."""
    if write_tokens is None and not sliced.layers:
        return None

    def finish(folder: Path) -> None:
        if write_tokens is not None:
            write_tokens(folder)
        file = folder / "config.json"
        if not file.is_file():
            return
        config = read_json(file)
        if sliced.layers:
            config = with_layers(config, list(sliced.layers))
        if alignment is not None:
            config = _with_rows(config, alignment.num_rows)
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    return finish


def _with_rows(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    return {
        key: rows if key == "vocab_size" else _with_rows(value, rows) if isinstance(value, Mapping) else value
        for key, value in config.items()
    }
