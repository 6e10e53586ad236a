"""What will happen to each tensor, and why, from headers alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..checkpoint import Source
from ..checkpoint.companions import left_by_training
from ..checkpoint.foreign import lora_names
from ..checkpoint.quantised import refuse_codes
from ..checkpoint.relaid import Relaid
from ..collector import without_collector
from ..dtypes import DTYPES
from ..errors import CheckpointError, MethodError, MismatchError
from ..methods import Method
from ..names import OUTPUT_MODULES, Renaming, config_values, selects, tied_source
from .decide import KEPT, decide, is_left_to_the_class
from .layers import fraction_through, stacks
from .matching import Match, Matching, laid_alike, whole_models
from .options import Policies, Selection, Side
from .step import Request, Step

__all__ = ["Plan", "Policies", "Request", "Selection", "Side", "Step", "make_plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every output tensor in the order in which the base's files hold them, and what was found on the way.

    Attributes:
        method: Of all steps that have none of their own.
        config_from: The model whose configuration and tokenizer the output has.
        warnings: What is likely to be a mistake, such as a base that is given as the fine-tune too.
    """

    base: Source
    tuned: tuple[Source, ...]
    method: Method
    config_from: Source
    steps: tuple[Step, ...]
    renamings: tuple[Renaming, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def bytes_written(self) -> int:
        """Bytes of all output tensors."""
        return sum(step.nbytes for step in self.steps)

    @property
    def bytes_read(self) -> int:
        """Stored bytes of everything that is read."""
        return sum(step.bytes_read for step in self.steps)

    @cached_property
    def _stacks(self) -> dict[str, int]:
        return stacks(step.name for step in self.steps)

    def depth_of(self, name: str) -> float:
        """Return how far through its stack of layers an output tensor is, in [0, 1]; 0 outside all stacks."""
        return fraction_through(name, self._stacks)

    def with_method(self, method: Method) -> Plan:
        """Return the plan with this method for every tensor."""
        return replace(self, method=method, steps=tuple(step._replace(method=None) for step in self.steps))


@without_collector()
def make_plan(
    models: Sequence[Source],
    method_of: Callable[[Match], Method],
    request: Request | None = None,
    *,
    matching: Matching | None = None,
) -> Plan:
    """Return one step for each output tensor, without reading a weight.

    Args:
        models: The base, then the tuned models, if any.
        method_of: The method of a tensor; where it is the same for all it is the plan's, and no step has its own.
        matching: What each output tensor is made of; by default the models are fused whole.

    Raises:
        MismatchError: The models disagree and no policy allows it.
        CheckpointError: A tensor has a dtype that cannot be read.
    """
    request = request or Request()
    from_tuned = request.config_from == "tuned" and len(models) > 1
    bare = from_tuned and (models[1].config is None or models[1].is_lent) and models[0].config is not None
    from_tuned = from_tuned and not bare
    if matching is None:
        models = laid_alike(models, models[1] if from_tuned else models[0])
        matching = whole_models(models, names_of_tuned=from_tuned)
    if any(len(match.parts) > 1 for match in matching.matches):
        for model in models:
            _refuse_lora(model)
            refuse_codes(model)
    steps, notes, left_out, selected = [], [note for model in models for note in _forms(model)], {}, False
    if bare:
        notes.append(f"`{models[1].ref}` has no `config.json`: the output has that of `{models[0].ref}`")
    passed_over: list[str] = []
    for match in matching.matches:
        step = decide(match, models, request, method_of)
        if step is not None:
            differs = _differs(step, models)
            steps.append(step if differs is None else step._replace(differs=differs))
            # Copying can be all that is asked for: by a rule, or of a model alone.
            alone = len(match.parts) == 1
            selected = (
                selected or step.action == "fuse" or step.why == KEPT or (alone and request.selection.covers(match.key))
            )
        if step is None and is_left_to_the_class(match):
            passed_over += [info.name for info in match.parts.values() if info is not None][:1]
        else:
            for name, whose, why in _left_out(match, models, step):
                left_out.setdefault((whose, why), []).append(name)
        if step is not None and step.action == "fuse":
            notes += _rows_left_out(step, models)
    _refuse_idle_extra(request, matching, models, steps)
    if passed_over:
        more = f" and {len(passed_over) - 1} more" if len(passed_over) > 1 else ""
        notes.append(f"`{passed_over[0]}`{more} left out: the output's configuration is of a model without")
    notes += [
        f"{_told(names)}{whose} {'is' if len(names) == 1 else 'are'} {why}" for (whose, why), names in left_out.items()
    ]
    notes += [
        f"{option} `{pattern}` matches no tensor"
        for option, patterns in (("include", request.selection.include), ("exclude", request.selection.exclude))
        for pattern in patterns
        if not any(selects([pattern], match.key) for match in matching.matches)
    ]
    if not selected:
        raise MethodError(
            "no tensor is selected for fusing",
            hint="`sculpt inspect` lists the names that `include` takes",
            options=["include"],
        )
    methods = [step.method for step in steps if step.method is not None] or [method_of(matching.matches[0])]
    if len(models) == 1 and not methods[0].counts_base:
        notes.append(f"`{models[0].ref}` is taken as it is: there is nothing to merge into it")
    if all(method is methods[0] or method == methods[0] for method in methods):
        steps = [step if step.method is None else step._replace(method=None) for step in steps]
    notes += conversions(steps, models)
    config_from = models[1] if from_tuned else models[0]
    return Plan(
        base=models[0],
        tuned=tuple(models[1:]),
        method=methods[0],
        config_from=config_from,
        steps=tuple(_with_tied_keys(steps, config_from)),
        renamings=matching.renamings,
        notes=tuple(dict.fromkeys(notes)),
    )


def _refuse_lora(model: Source) -> None:
    """Refuse factors that stand among a checkpoint's tensors, or in the place of one."""
    found = lora_names(model.tensors)
    if found is not None:
        name, layout = found
        raise CheckpointError(
            f"`{model.ref}` holds the factors of a LoRA in {layout} layout (`{name}`), not the weights of a model",
            hint="a PEFT folder with its `adapter_config.json` is read as an adapter, and so is the file of a LoRA of "
            "kohya's or diffusers' by itself; others are to be merged first",
        )


def _forms(model: Source) -> Iterable[str]:
    """Return what is said of a model whose tensors are not taken as its files have them."""
    own = model.base or model
    yield from own.said
    for wrapper, count in own.wrappers.items():
        yield f"`{wrapper}` is taken out of {count} names of `{own.ref}`: it wrapped the model in training"
    for format_name, count in own.decoded.items():
        yield f"{count} tensor{'s' if count > 1 else ''} of `{own.ref}` decoded from {format_name}"
    yield from own.notes
    if isinstance(model, Relaid):
        first = next(iter(model.made))
        more = f" and {len(model.made) - 1} more" if len(model.made) > 1 else ""
        yield f"`{first}`{more} of `{model.ref}` read by transformers' own rules: names or layout there are others"


def conversions(steps: Sequence[Step], models: Sequence[Source]) -> list[str]:
    """Return, for each model, in which floats it was stored where the output has others."""
    found: dict[tuple[int, str, str], int] = {}
    for step in steps:
        for index, info in enumerate((step.base, *step.tuned)):
            if info is not None and info.stored != step.dtype and step.num_fused:
                key = index, DTYPES[info.stored].torch, DTYPES[step.dtype].torch
                found[key] = found.get(key, 0) + 1
    return [
        f"{count} tensor{'s' if count > 1 else ''} of `{models[index].ref}` in {own}: "
        f"computed in float32, stored in {stored}"
        for (index, own, stored), count in found.items()
    ]


def _left_out(match: Match, models: Sequence[Source], step: Step | None) -> Iterable[tuple[str, str, str]]:
    """Return each tensor of the match that has no place in the output, whose it is, and what is said of it."""
    (lead, base), *others = match.parts.items()
    if base is not None and step is not None:
        return []
    if base is not None and lead not in match.tied:
        missing = [f"`{models[index].ref}`" for index, info in others if info is None]
        told = f"left out: missing in {', '.join(missing)}" if missing else "not stored: the tuned model ties it"
        return [(base.name, "", told)]
    return [
        (info.name, f" of `{models[index].ref}`", "left out")
        for index, info in others
        if info is not None and index not in match.tied and (step is None or step.origin != index)
    ]


def _rows_left_out(step: Step, models: Sequence[Source]) -> Iterable[str]:
    """Return a note on each model of which the output has no place for some rows of a vocabulary."""
    for info, model in zip((step.base, *step.tuned), models, strict=True):
        if info is not None and info.shape != step.shape and info.num_elements > step.num_elements:
            more = info.shape[0] - step.shape[0]
            are = "is" if more == 1 else "are"
            yield f"{more} row{'s' * (more > 1)} of `{info.name}` of `{model.ref}` {are} left out: the output has fewer"


def _told(names: Sequence[str]) -> str:
    """Return names for a sentence, those that differ in a layer's number once, with how many there are."""
    kinds = Counter(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names)
    return ", ".join(f"`{kind}`" + (f" ({number})" if number > 1 else "") for kind, number in kinds.items())


def _differs(step: Step, models: Sequence[Source]) -> bool | None:
    """Return whether a tuned model has other elements than the base in a tensor that is copied."""
    if step.action == "fuse" or step.base is None:
        return None
    base, tuned = step.base, [(info, model) for info, model in zip(step.tuned, models[1:], strict=True) if info]
    if not tuned:
        return None
    return not all(model.seems_equal(info.name, models[0], base.name) for info, model in tuned)


def idle_models(models: Sequence[Source]) -> Iterable[str]:
    """Yield a warning of each tuned model that is the base, or another tuned model, once more."""
    seen = {models[0].fingerprint: models[0]}
    for model in models[1:]:
        if model.changes_nothing:
            yield f"`{model.ref}` changes nothing: every B of the adapter is zero, as it is before training"
        elif model.fingerprint in seen:
            other = seen[model.fingerprint].ref
            yield f"`{model.ref}` and `{other}` are the same model: sampled values of all tensors agree"
        seen.setdefault(model.fingerprint, model)


def swapped(models: Sequence[Source]) -> Iterable[str]:
    """Yield a warning where the base looks like the fine-tune, and no tuned model does: one may stand for the other."""
    base, *tuned = models
    if not tuned:
        return
    named = (base.config or {}).get("_name_or_path")
    if named and any(named in (model.ref.asked, model.ref.repository) for model in tuned):
        yield f"the configuration of `{base.ref}` says that it came from `{named}`: are base and tuned swapped?"
        return
    left, *others = (left_by_training(model.folder) for model in models)
    if left and not any(others):
        yield (
            f"`{base.ref}` holds `{left}`, a file that training writes, and `{tuned[0].ref}` holds none: "
            "are base and tuned swapped?"
        )


def _refuse_idle_extra(request: Request, matching: Matching, models: Sequence[Source], steps: Sequence[Step]) -> None:
    """Refuse to take extra tensors where the first of the tuned models has none and another has."""
    extra = [match for match in matching.matches if next(iter(match.parts.values())) is None]
    if request.policies.on_extra != "take-tuned" or not extra or any(step.base is None for step in steps):
        return
    index, info = next((index, info) for index, info in extra[0].parts.items() if info is not None)
    raise MismatchError(
        info.name,
        f"`{info.name}` is only in `{models[index].ref}`, and the output has the configuration of `{models[1].ref}`",
        hint=f"name `{models[index].ref}` first of the tuned models",
    )


def _with_tied_keys(steps: Sequence[Step], config_from: Source) -> list[Step]:
    """Give tensors that the output's config ties, but its files store twice, one key: one decision a match."""
    if True not in config_values(config_from.config, "tie_word_embeddings"):
        return list(steps)
    shapes = {step.name: step.shape for step in steps}
    by_name = {step.name: step for step in steps}
    tied = []
    for step in steps:
        source = None
        if OUTPUT_MODULES.intersection(step.name.split(".")[-2:-1]):
            source = tied_source(step.name, shapes, step.shape, config_from.config)
        if source is not None and by_name[source].action == step.action == "fuse":
            tied.append(step._replace(key=by_name[source].key, why=f"tied to {source}"))
        else:
            tied.append(step)
    return tied
