"""From a recipe to a fuse that is planned: models opened, vocabularies aligned, a method for each tensor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint import ModelRef, Source, find_model, open_checkpoint
from ..checkpoint.json_file import read_json
from ..checkpoint.output.guard import CHECKPOINT, refuse_output
from ..errors import MethodError
from ..methods import Method
from ..plan.matching import Match
from ..plan.plan import make_plan
from ..run.fuse import Prepared, prepare_plan
from ..run.settings import Settings
from .layers import fraction_through, stacks, with_layers
from .recipe import ModelEntry, ModelName, Recipe
from .slices import match_slices
from .tokenizers import Finish, known_tokens, load_tokenizer, taken_from, union
from .vocabulary import Member, RowMap, align_vocabularies, aligned


def open_models(names: Sequence[ModelName], near: Path) -> dict[ModelName, Source]:
    """Return the models' checkpoints, their adapters on top; models and adapters of one base share it."""
    bases: dict[ModelRef, Source] = {}
    opened = {}
    for name in names:
        ref = find_model(name.path, near)
        if ref not in bases:
            bases[ref] = open_checkpoint(ref)
        base = bases[ref]
        opened[name] = base if name.adapter is None else open_checkpoint(find_model(name.adapter, near), base)
    return opened


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
    opened = open_models(names, near)
    refuse_output(output, [checkpoint.ref for checkpoint in opened.values()], CHECKPOINT, overwrite=overwrite)
    facts: dict[str, Any] = {"content": recipe.content}
    write_tokens, rows = None, None
    if recipe.vocabulary is not None:
        opened, rows, write_tokens = _with_one_vocabulary(recipe, names, opened)
        digest = hashlib.sha256(rows.own.tobytes() + repr(sorted(rows.donors.items())).encode())
        facts["vocabulary"] = {"rows": rows.num_rows, "digest": digest.hexdigest()}
    settings = replace(settings, recipe=facts)
    request = settings.request(keep=recipe.keep)
    if recipe.slices:
        sliced = match_slices(recipe, opened)
        layers = sliced.layers
        plan = make_plan(sliced.models, sliced.method_of, request, matching=sliced.matching)
    else:
        layers = ()
        sources = participants(recipe)
        models = [opened[source.model] for source in sources]
        plan = make_plan(models, _method_of(recipe, sources, stacks(models[0].tensors)), request)
    methods = [step.method or plan.method for step in plan.steps if step.action == "fuse"] or [plan.method]
    return prepare_plan(
        plan,
        output=output,
        settings=settings,
        options=recipe.told_options(methods),
        finish=_finish(write_tokens, rows, layers),
    )


def participants(recipe: Recipe) -> list[ModelEntry]:
    """Return the models that are merged whole in the order of a plan, what stands for the base first.

    Raises:
        MethodError: There is a model too few.
    """
    if recipe.base is None:
        if not recipe.models:
            raise MethodError(f"{recipe.method.title} merges no models")
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
        return found.for_models(len(sources) - 1)

    return method_of


def _with_one_vocabulary(
    recipe: Recipe, names: Sequence[ModelName], opened: Mapping[ModelName, Source]
) -> tuple[dict[ModelName, Source], RowMap, Finish]:
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
    rows = align_vocabularies(
        members,
        found.tokens,
        base=0 if recipe.base is not None else None,
        sources=vocabulary.tokens,
        labels={name: k for k, name in enumerate(names)},
        pad_to_multiple_of=vocabulary.pad_to_multiple_of,
        like=like,
    )
    return dict(zip(names, aligned(members, rows), strict=True)), rows, found.write


def _finish(write_tokens: Finish | None, rows: RowMap | None, layers: Sequence[int]) -> Finish | None:
    """Return what brings tokenizer and configuration into line with the weights, or None."""
    if write_tokens is None and not layers:
        return None

    def finish(folder: Path) -> None:
        if write_tokens is not None:
            write_tokens(folder)
        file = folder / "config.json"
        if not file.is_file():
            return
        config = read_json(file)
        if layers:
            config = with_layers(config, list(layers))
        if rows is not None:
            config = _with_rows(config, rows.num_rows)
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    return finish


def _with_rows(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    return {
        key: rows if key == "vocab_size" else _with_rows(value, rows) if isinstance(value, Mapping) else value
        for key, value in config.items()
    }
