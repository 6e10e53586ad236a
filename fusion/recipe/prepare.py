"""From a recipe to a fuse that is planned: models opened, vocabularies aligned, a method for each tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..checkpoint import Asked, ModelRef, Source, find_model, open_checkpoint
from ..checkpoint.open import needs_base
from ..checkpoint.output.guard import refuse_output
from ..checkpoint.tokens import other_tokens
from ..errors import MethodError
from ..file_kinds import TOKENIZER_CONFIG
from ..methods import Method
from ..names import with_vocabulary
from ..plan.configuration import Reshape
from ..plan.layers import fraction_through, stack_of, stacks
from ..plan.matching import Match, laid_alike
from ..plan.plan import Plan, idle_models, make_plan
from ..run.prepared import Prepared, prepare_plan
from ..run.settings import Settings
from .chat_template import find_template, write_template
from .layer_rules import config_of_layers
from .recipe import ModelEntry, ModelName, Recipe, Vocabulary
from .slices import match_slices
from .tokenizers import Finish, OutputTokens, known_tokens, load_tokenizer, taken_from, tokenizer_folder, union
from .vocabulary import Member, RowMap, align_vocabularies, aligned


def open_models(recipe: Recipe, near: Path) -> dict[ModelName, Source]:
    """Return the recipe's models, by the names that it has for them; models and adapters of one base share it.

    An adapter's folder in the place of a model is opened over the base that the recipe names, as in a command; without
    one, over the base that the adapter itself names.

    Raises:
        CheckpointError: One cannot be read.
        MethodError: Slices of different bases use one adapter.
    """
    whole: dict[ModelRef, Source] = {}
    opened: dict[ModelName, Source] = {}
    bases = _bases_of(recipe)

    def plain(ref: ModelRef) -> Source:
        if ref not in whole:
            whole[ref] = open_checkpoint(ref)
        return whole[ref]

    def source(name: ModelName) -> Source:
        ref = find_model(name.path, near)
        if name.adapter is not None:
            return open_checkpoint(find_model(name.adapter, near), plain(ref))
        own = bases.get(name, set())
        if not own or not needs_base(ref):
            return plain(ref)
        if len(own) > 1:
            told = " and ".join(f"`{base}`" for base in sorted(map(str, own)))
            raise MethodError(f"`{name}` is an adapter, and the slices that use it have the bases {told}")
        return open_checkpoint(ref, opened[own.pop()])

    # Bases first: adapters are opened over them.
    for name in sorted(recipe.named_models(), key=lambda name: name in bases):
        opened[name] = source(name)
    return {name: opened[name] for name in recipe.named_models()}


def _bases_of(recipe: Recipe) -> dict[ModelName, set[ModelName]]:
    """Return by model the bases that the recipe has where it uses it; what is a base itself is left out."""
    used = [(recipe.base, recipe.models), *((piece.base or recipe.base, piece.sources) for piece in recipe.slices)]
    named = {base for base, _ in used}
    found: dict[ModelName, set[ModelName]] = {}
    for base, sources in used:
        for entry in sources:
            if base is not None and entry.model not in named:
                found.setdefault(entry.model, set()).add(base)
    return found


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
    opened = open_models(recipe, near)
    refuse_output(
        output, [checkpoint.ref for checkpoint in opened.values()], settings.kind(output), overwrite=overwrite
    )
    facts: dict[str, Any] = {"content": recipe.content}
    written, rows = None, None
    if settings.tokenizer is not None:
        recipe = replace(recipe, vocabulary=_vocabulary(settings.tokenizer, recipe))
    if recipe.vocabulary is not None:
        opened, rows, written = _with_one_vocabulary(recipe, names, opened)
        digest = hashlib.sha256(rows.own.tobytes() + repr(sorted(rows.donors.items())).encode())
        facts["vocabulary"] = {"rows": rows.num_rows, "digest": digest.hexdigest()}
    settings = replace(settings, recipe=facts)
    recipe = replace(recipe, run=settings)
    request = settings.request(keep=recipe.keep)
    layers, matching = (), None
    if recipe.slices:
        alike = laid_alike([opened[name] for name in names], opened[names[0]])
        sliced = match_slices(recipe, dict(zip(names, alike, strict=True)))
        models, matching, method_of, layers = sliced.models, sliced.matching, sliced.method_of, sliced.layers
    else:
        sources = participants(recipe)
        models = [opened[source.model] for source in sources]
        method_of = _method_of(recipe, sources, stacks(models[0].tensors))
    asked: dict[str, Method] = {}  # a model that lacks a tensor has no part in its step's method

    def noted(match: Match) -> Method:
        asked[match.name] = method_of(match)
        return asked[match.name]

    plan = make_plan(models, noted, request, matching=matching)
    template, told = _chat_template(recipe, plan, list(opened.values()))
    other = other_tokens(models) if recipe.vocabulary is None else ()
    plan = replace(
        plan,
        warnings=tuple(idle_models(models)),
        notes=(*recipe.notes, *told, *_predictors(models[0], layers), *plan.notes, *other),
    )
    methods = [asked[step.name] for step in plan.steps if step.action == "fuse"] or [plan.method]
    return prepare_plan(
        plan,
        output=output,
        settings=settings,
        options=recipe.told_options(methods),
        reshape=_reshape(rows, layers, models[0]),
        tokens=None if written is None else written.ids_for(plan.config_from.folder),
        finish=_finish(None if written is None else written.write, template),
    )


def participants(recipe: Recipe) -> list[ModelEntry]:
    """Return the models that are merged whole in the order of a plan, what stands for the base first.

    Raises:
        MethodError: There is a model too few.
    """
    if recipe.base is None:
        if not recipe.models:
            raise MethodError(f"{recipe.method.title} does not merge models")
        return list(recipe.models)
    own = next((source for source in recipe.models if source.model == recipe.base), None)
    return [own or ModelEntry(model=recipe.base), *(s for s in recipe.models if s.model != recipe.base)]


def _method_of(recipe: Recipe, sources: Sequence[ModelEntry], counts: Mapping[str, int]) -> Callable[[Match], Method]:
    """Return what gives the method of a tensor of whole models; `counts` are the base's stacks of layers."""

    def method_of(match: Match) -> Method:
        found = recipe.method_for(
            match.name,
            fraction_through(match.key, counts),
            sources=sources,
            names=match.names,
            baseless=recipe.base is None,
        )
        return found.for_models(recipe.run.num_seen(found, len(sources) - 1))

    return method_of


def _vocabulary(asked: str, recipe: Recipe) -> Vocabulary:
    """Return the vocabulary that the settings ask for, with what the recipe says of it beside."""
    named = next((name for name in recipe.named_models() if str(name) == asked), ModelName(path=asked))
    source = asked if asked in ("base", "union") else named
    return replace(recipe.vocabulary or Vocabulary(), source=source)


def recipe_of(method: Method, base: Asked, tuned: Sequence[Asked]) -> Recipe:
    """Return the recipe that says what a command does."""
    return Recipe(
        method=type(method),
        base=ModelName(path=str(base)),
        models=tuple(ModelEntry(model=ModelName(path=str(model))) for model in tuned),
        overrides={field.name: getattr(method, field.name) for field in fields(method)},
    )


def _with_one_vocabulary(
    recipe: Recipe, names: Sequence[ModelName], opened: Mapping[ModelName, Source]
) -> tuple[dict[ModelName, Source], RowMap, OutputTokens]:
    """Return the models with their vocabularies aligned, how, and the output's tokenizer."""
    vocabulary = recipe.vocabulary
    assert vocabulary is not None
    folders = {name: tokenizer_folder(opened[name]) for name in names}
    tokenizers = {name: load_tokenizer(folders[name], str(name)) for name in names}
    tokens = {name: known_tokens(tokenizers[name], opened[name]) for name in names}
    source = names[0] if isinstance(vocabulary.source, str) else vocabulary.source
    if source not in tokenizers:
        raise MethodError(f"the tokenizer should come from `{source}`, which is not part of the merge")
    if vocabulary.source == "union":
        found = union([tokenizers[n] for n in names], [tokens[n] for n in names], vocabulary.tokens)
        like = None
    else:
        folder = folders[source]
        assert folder is not None  # its tokenizer was loaded from there
        found = taken_from(folder, tokenizers[source], opened[source], vocabulary.tokens)
        like = names.index(source) if len(found.tokens) == len(tokens[source]) else None
    members = [Member(label=str(name), checkpoint=opened[name], tokens=tokens[name]) for name in names]
    rows = align_vocabularies(
        members,
        found.tokens,
        base=0 if recipe.base is not None else None,
        sources=vocabulary.tokens,
        labels={name: k for k, name in enumerate(names)},
        pad_to_multiple_of=vocabulary.pad_to_multiple_of,
        like=like,
    )
    return dict(zip(names, aligned(members, rows), strict=True)), rows, found


def _predictors(model: Source, layers: Sequence[int]) -> list[str]:
    """Return a note where a model has what predicts further tokens, and its layers are moved."""
    found = stack_of(model.tensors, model.config) if layers else None
    if found is None or stacks(model.tensors)[found[0]] == found[1]:
        return []
    return [f"`{found[0]}{found[1]}` of `{model.ref}`, which predicts further tokens, is left out: it is no layer"]


def _reshape(rows: RowMap | None, layers: Sequence[int], model: Source) -> Reshape:
    """Return what brings the configuration into line with layers that were moved and vocabularies that were aligned."""

    def reshape(config: Mapping[str, Any]) -> dict[str, Any]:
        found = config_of_layers(model, layers) if layers else dict(config)
        return found if rows is None else with_vocabulary(found, rows.num_rows)

    return reshape


def _chat_template(recipe: Recipe, plan: Plan, models: Sequence[Source]) -> tuple[str | None, list[str]]:
    """Return the chat template that is to be written, if any, and a note where the recipe's word has no effect."""
    if recipe.chat_template is None:
        return None, []
    template = find_template(recipe.chat_template, models)
    if template is None:
        return None, ["no model has a chat template, so the output has none"]
    if recipe.vocabulary is None and Path(TOKENIZER_CONFIG) not in plan.config_from.companions():
        return None, [f"`{plan.config_from.ref}` has no tokenizer to give a chat template to"]
    return template, []


def _finish(write_tokens: Finish | None, template: str | None) -> Finish | None:
    """Return what writes the output's tokenizer and chat template, or None."""
    if write_tokens is None and template is None:
        return None

    def finish(folder: Path) -> None:
        if write_tokens is not None:
            write_tokens(folder)
        if template is not None:
            write_template(template, folder)

    return finish
