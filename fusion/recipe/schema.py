"""sculpt's own recipes.

    method: dare-ties
    base: base/
    models:
      - model: code/
        weights: 1.0
      - model: math/
        adapter: math-lora/
        weights: {gradient: [0.2, 0.8]}     # over the layers
    options: {sparsity: 0.8, scale: 1.0}
    rules:
      - match: ["*.mlp.*"]
        options: {sparsity: 0.9}
      - match: ["lm_head.*"]
        keep: base
    tokenizer: union
    dtype: bfloat16

In place of `models`, `slices` say what each run of layers is made of:

    slices:
      - sources:
          - {model: code/, layers: [0, 16], weights: 0.4}
          - {model: math/, layers: [0, 16], weights: 0.6}
        options: {scale: 0.5}
      - sources: [{model: math/, layers: [8, 24]}]

Options carry the names of the method's own: those of its command, with underscores.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from ..arithmetic.two_sided import Protection
from ..checkpoint.output.layout import parse_size
from ..errors import DataError, MethodError, RecipeError, SculptError, did_you_mean
from ..methods import METHODS, Method
from ..plan.options import Policies, Selection, Side
from ..run.calibration import NOT_IN_RECIPES, Calibration
from ..run.settings import OutputFormat, Rounding, Settings
from .document import Document, KeyPath
from .recipe import ModelEntry, ModelName, Parameter, Recipe, Slice, Vocabulary
from .setting import Case, Gradient, Setting


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class _Model(BaseModel):
    """A model; its further keys are options with a value for each model."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str
    adapter: str | None = None


class _StretchModel(_Model):
    """A model of a slice: its layers, first and one past the last; by default all."""

    layers: tuple[int, int] | None = None


class _Stretch(_Strict):
    sources: list[_StretchModel]
    base: str | None = None
    options: dict[str, Any] | None = None


class _Rule(_Strict):
    match: str | list[str]
    options: dict[str, Any] | None = None
    keep: Side | None = None


def _keys_of(options: type, *, leave_out: Collection[str] = (), **types: Any) -> Any:
    """Return the fields of an option class as the keys of a part of a recipe.

    Args:
        leave_out: Fields that no recipe can say.
        types: By field, what a recipe says, where that is not what the class holds.
    """
    hints = get_type_hints(options)
    found = {
        field.name: (types.get(field.name, hints[field.name]), field.default)
        for field in fields(options)
        if field.name not in leave_out
    }
    return create_model(f"_{options.__name__}", __base__=_Strict, **found)  # pyright: ignore[reportCallIssue, reportArgumentType]


PathOrPaths = str | list[str] | None
_Policies = _keys_of(Policies)
_Protection = _keys_of(Protection)
_Calibration = _keys_of(
    Calibration,
    leave_out=NOT_IN_RECIPES,
    hessian=PathOrPaths,
    data=PathOrPaths,
    protect=PathOrPaths,
    memory=str | None,
)


class _Recipe(_Strict):
    """The keys of a document."""

    method: str
    name: str | None = None
    base: str | None = None
    models: list[_Model | str] | None = None
    slices: list[_Stretch] | None = None
    options: dict[str, Any] | None = None
    rules: list[_Rule] | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None
    rest: Side = "base"
    tokenizer: str | None = None
    pad_to_multiple_of: int | None = None
    chat_template: str | None = None
    dtype: str | None = None
    max_shard_size: str | None = None
    output_format: OutputFormat = "plain"
    rounding: Rounding = "auto"
    config_from: Side | None = None
    seed: int = 0
    policies: _Policies | None = None  # pyright: ignore[reportInvalidTypeForm]
    calibration: _Calibration | None = None  # pyright: ignore[reportInvalidTypeForm]
    protection: _Protection | None = None  # pyright: ignore[reportInvalidTypeForm]


def parameters_of(method: type[Method]) -> tuple[Parameter, ...]:
    """Return the options of a method as parameters of our recipes: under their own names."""
    hints = get_type_hints(method)

    def convert(name: str) -> Any:
        hint = hints[name]
        if hint in (int, float, bool):
            return lambda value: _as(hint, name, value)
        if name in method.per_model:
            return lambda value: tuple(map(float, value)) if isinstance(value, tuple) else _as(float, name, value)
        return lambda value: value

    return tuple(
        Parameter(
            name=field.name, option=field.name, per_model=field.name in method.per_model, convert=convert(field.name)
        )
        for field in fields(method)
    )


def _as(kind: type, name: str, value: Any) -> Any:
    if kind is bool and not isinstance(value, bool):
        raise MethodError(f"{name} is true or false, got `{value}`")
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise MethodError(f"{name} is a number, got `{value}`") from error


def _protection(found: _Recipe) -> Protection | None:
    """Return how the base is protected: where the recipe says how, or on what."""
    if found.protection is None and (found.calibration is None or found.calibration.protect is None):
        return None
    return Protection(**_said(found.protection))


def _said(part: BaseModel | None) -> dict[str, Any]:
    """Return the keys that a part of a recipe has."""
    return {} if part is None else part.model_dump(exclude_unset=True)


def _calibration(found: _Recipe) -> dict[str, Any]:
    said = _said(found.calibration)
    if said.get("memory") is not None:
        said["memory"] = parse_size(said["memory"])
    Calibration(**said)  # which refuses what does not go together
    return said


def _value(value: Any, document: Document, place: KeyPath) -> Setting:
    if isinstance(value, Mapping):
        if set(value) != {"gradient"} or not isinstance(value["gradient"], list) or not value["gradient"]:
            raise document.error(place, "expected a value or `{gradient: [first, …, last]}`")
        return Gradient(values=tuple(value["gradient"]))
    if isinstance(value, list):
        if not value or not all(isinstance(item, (int, float)) for item in value):
            raise document.error(place, "expected a number for each model")
        return tuple(float(item) for item in value)
    if isinstance(value, (bool, int, float, str)):
        return value
    raise document.error(place, "expected a value")


def _checked(option: str, known: Mapping[str, Parameter], method: str, document: Document, place: KeyPath) -> None:
    if option not in known:
        raise document.error(place, f"`{method}` has no option `{option}`", hint=did_you_mean(option, known))


def _settings(found: _Recipe, known: Mapping[str, Parameter], document: Document) -> dict[str, Setting]:
    """Return the options, those of a rule ahead of the general ones."""
    cases: dict[str, list[Case]] = {}
    for index, rule in enumerate(found.rules or []):
        globs = (rule.match,) if isinstance(rule.match, str) else tuple(rule.match)
        for option, value in (rule.options or {}).items():
            place = ("rules", index, "options", option)
            _checked(option, known, found.method, document, place)
            cases.setdefault(option, []).append(Case(value=_value(value, document, place), globs=globs))
    for option, value in (found.options or {}).items():
        place = ("options", option)
        _checked(option, known, found.method, document, place)
        cases.setdefault(option, []).append(Case(value=_value(value, document, place)))
    return {option: tuple(own) for option, own in cases.items()}


def _entry(entry: _Model | str, known: Mapping[str, Parameter], document: Document, place: KeyPath) -> ModelEntry:
    if isinstance(entry, str):
        return ModelEntry(model=ModelName(path=entry))
    own: dict[str, Setting] = {}
    for option, value in (entry.model_extra or {}).items():
        _checked(option, known, document.content["method"], document, (*place, option))
        if not known[option].per_model:
            raise document.error((*place, option), f"`{option}` is the same for all models: it belongs under `options`")
        own[option] = _value(value, document, (*place, option))
    layers = entry.layers if isinstance(entry, _StretchModel) else None
    if layers is not None and not 0 <= layers[0] < layers[1]:
        raise document.error((*place, "layers"), f"expected a first and a later layer, got {list(layers)}")
    return ModelEntry(model=ModelName(path=entry.model, adapter=entry.adapter), layers=layers, settings=own)


def _slice(piece: _Stretch, known: Mapping[str, Parameter], document: Document, place: KeyPath) -> Slice:
    options: dict[str, Setting] = {}
    for option, value in (piece.options or {}).items():
        _checked(option, known, document.content["method"], document, (*place, "options", option))
        options[option] = _value(value, document, (*place, "options", option))
    return Slice(
        sources=tuple(
            _entry(entry, known, document, (*place, "sources", index)) for index, entry in enumerate(piece.sources)
        ),
        base=None if piece.base is None else ModelName(path=piece.base),
        settings=options,
    )


def _place_of(error: SculptError, document: Document) -> KeyPath:
    """Return the key that an error is about, as far as the recipe has it."""
    for name in (option.rpartition(".")[2] for option in error.options):
        for part in ((), ("calibration",), ("protection",), ("policies",)):
            content: Any = document.content
            for key in part:
                content = content.get(key)
            if isinstance(content, Mapping) and name in content:
                return (*part, name)
    return ()


def read_own(document: Document) -> Recipe:
    """Return the recipe that a document in our own schema states; base and models may be left to the caller.

    Raises:
        RecipeError: It is malformed.
    """
    found = document.validated(_Recipe)
    if found.method not in METHODS:
        raise document.error(
            ("method",), f"no method is called `{found.method}`", hint=did_you_mean(found.method, METHODS)
        )
    if found.slices and (found.models or found.config_from == "tuned"):
        other = "models" if found.models else "config_from"
        raise document.error((other,), "slices name their models, and the first of all gives the configuration")
    method = METHODS[found.method]
    parameters = parameters_of(method)
    known = {parameter.name: parameter for parameter in parameters}
    keep: tuple[tuple[tuple[str, ...], Side], ...] = tuple(
        ((rule.match,) if isinstance(rule.match, str) else tuple(rule.match), rule.keep)
        for rule in found.rules or []
        if rule.keep is not None
    )
    tokenizer = found.tokenizer
    try:
        calibration = _calibration(found)
        run = replace(
            Settings(),
            seed=found.seed,
            dtype=found.dtype,
            config_from=found.config_from or ("base" if found.slices else "tuned"),
            max_shard_bytes=parse_size(found.max_shard_size) if found.max_shard_size else None,
            output_format=found.output_format,
            rounding=found.rounding,
            selection=Selection(
                include=tuple(found.include or ()), exclude=tuple(found.exclude or ()), rest=found.rest
            ),
            policies=Policies(**_said(found.policies)),
            protection=_protection(found),
        )
    except (MethodError, DataError) as error:
        line = document.line(_place_of(error, document))
        raise RecipeError(document.file, line, error.message, hint=error.hint) from error
    return Recipe(
        method=method,
        base=None if found.base is None else ModelName(path=found.base),
        models=tuple(
            _entry(entry, known, document, ("models", index)) for index, entry in enumerate(found.models or [])
        ),
        slices=tuple(
            _slice(piece, known, document, ("slices", index)) for index, piece in enumerate(found.slices or [])
        ),
        name=found.name,
        settings=_settings(found, known, document),
        parameters=parameters,
        keep=keep,
        vocabulary=None
        if tokenizer is None
        else Vocabulary(
            source=tokenizer if tokenizer in ("base", "union") else ModelName(path=tokenizer),
            pad_to_multiple_of=found.pad_to_multiple_of,
        ),
        chat_template=found.chat_template,
        run=run,
        calibration=calibration,
        content=document.content,
    )
