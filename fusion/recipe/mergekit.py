"""mergekit's YAML, read as it is. What sculpt does not do is refused by the name of its key.

Keys and parameters that mergekit has no use for either are without effect there; here they are told, or refused where
they look like a slip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo

from ..errors import MethodError, did_you_mean
from ..ref import is_there
from ..run.settings import Settings
from .document import Document, KeyPath, dotted
from .mergekit_methods import DIALECTS, Dialect
from .recipe import ModelEntry, ModelName, Recipe, Slice, TokenSource, Vocabulary
from .setting import Case, Gradient, OptionSettings, Setting

REFUSED = {
    "modules": "models of several modules are merged whole: list them under `models`",
    "override_architecture": None,
}


def _model_name(value: Any, folder: Path) -> ModelName:
    """Return `model+lora`, `model@revision` or mergekit's mapping as a `ModelName`.

    Args:
        folder: What paths may be relative to: one that exists is taken whole, whatever signs it has.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(value, ModelName):
        return value
    if isinstance(value, Mapping):
        if not set(value) <= {"model", "lora"} or "model" not in value:
            raise ValueError("a model is a path, `path+adapter`, or a mapping of `model` and `lora`")
        parts = [value["model"], *([value["lora"]] if value.get("lora") else [])]
        texts = []
        for part in parts:
            path = part.get("path") if isinstance(part, Mapping) else part
            revision = part.get("revision") if isinstance(part, Mapping) else None
            texts.append(f"{path}@{revision}" if revision else str(path))
    elif isinstance(value, str) and value:
        texts = _split(value, folder)
    else:
        raise ValueError("a model is a path, `path+adapter`, or a mapping of `model` and `lora`")
    if len(texts) > 2:
        raise ValueError(f"`{value}` names more than one adapter")
    return ModelName(path=texts[0], adapter=texts[1] if len(texts) == 2 else None)


def _split(text: str, folder: Path) -> list[str]:
    """Return a path, or a path and its adapter's: of all ways to cut the text at one `+` that which is there."""

    def exists(path: str) -> bool:
        return is_there(Path(path)) or is_there(folder / path)

    parts = text.split("+")
    cuts = [("+".join(parts[:k]), "+".join(parts[k:])) for k in range(1, len(parts))]
    if exists(text):
        return [text]
    return next((list(cut) for cut in cuts if all(map(exists, cut))), parts)


Model = Annotated[ModelName, BeforeValidator(lambda value, info: _model_name(value, _folder(info)))]


def _folder(info: ValidationInfo) -> Path:
    assert isinstance(info.context, Path)
    return info.context


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True, protected_namespaces=())

    parameters: dict[str, Any] | None = None


class _Input(_Part):
    model: Model


class _SliceInput(_Part):
    model: Model
    layer_range: tuple[int, int]


class _Slice(_Part):
    sources: list[_SliceInput]
    base_model: Model | None = None


class _Tokens(BaseModel):
    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)

    source: Any = None
    force: bool = False


class _Tokenizer(BaseModel):
    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)

    source: Any = "union"
    tokens: dict[str, _Tokens] | None = None
    pad_to_multiple_of: int | None = None


class _Configuration(_Part):
    """The keys of a document."""

    merge_method: str
    name: str | None = None
    models: list[_Input] | None = None
    slices: list[_Slice] | None = None
    base_model: Model | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: Any = None
    tokenizer: _Tokenizer | None = None
    chat_template: str | None = None


def is_mergekit(document: Document) -> bool:
    """Return whether a document is mergekit's: it names a `merge_method`."""
    return "merge_method" in document.content


def _setting(value: Any, document: Document, place: KeyPath) -> Setting:
    """Return a parameter's value: a scalar, a gradient, or cases by filter."""
    if isinstance(value, Mapping):
        value = [value]
        place = (*place, 0)
    if isinstance(value, (bool, int, float, str)):
        return _number(value)
    if isinstance(value, list) and value and all(isinstance(item, (bool, int, float, str)) for item in value):
        return Gradient(values=tuple(_number(item) for item in value))
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        cases = []
        for index, item in enumerate(value):
            own = (*place, index)
            unknown = sorted(set(item) - {"filter", "value"})
            if unknown or "value" not in item:
                raise document.error(own, f"unknown key `{unknown[0]}`" if unknown else "`value` is missing")
            pattern = item.get("filter")
            contains = None if pattern in (None, "*") else str(pattern)
            cases.append(Case(value=_setting(item["value"], document, own), contains=contains))
        return tuple(cases)
    raise document.error(place, "expected a value, a list of values over the layers, or a list of `filter` and `value`")


def _number(value: bool | float | str) -> bool | float | str:
    """Return `1e-5`, which YAML 1.1 reads as text, as the number it is."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _settings(part: _Part, document: Document, place: KeyPath, dialect: Dialect) -> OptionSettings:
    known, said = {parameter.name for parameter in dialect.parameters}, part.parameters or {}
    return {
        name: _setting(value, document, (*place, "parameters", name))
        for name, value in said.items()
        if name in known and value is not None
    }


def _token_source(config: _Tokens, document: Document, place: KeyPath) -> TokenSource:
    source = config.source
    if source is None or (isinstance(source, Mapping) and source.get("kind") == "zero"):
        return TokenSource(force=config.force)
    if isinstance(source, Mapping) and source.get("kind") == "model_token":
        token = source.get("token") if source.get("token_id") is None else source["token_id"]
        if token is None or "model" not in source:
            raise document.error(place, "a `model_token` names `model`, and `token` or `token_id`")
        return TokenSource(model=_named(source["model"], document, place), token=token, force=config.force)
    return TokenSource(model=_named(source, document, place), force=config.force)


def _named(value: Any, document: Document, place: KeyPath) -> ModelName:
    try:
        return _model_name(value, document.file.parent)
    except ValueError as error:
        raise document.error(place, str(error)) from error


def _vocabulary(found: _Configuration, document: Document) -> Vocabulary | None:
    if found.tokenizer_source is not None and found.tokenizer is not None:
        raise document.error(("tokenizer",), "`tokenizer_source` and `tokenizer` exclude each other")
    if found.tokenizer_source is not None:
        return Vocabulary(source=_policy(found.tokenizer_source, document, ("tokenizer_source",)))
    if found.tokenizer is None:
        return None
    tokens = {
        token: _token_source(config, document, ("tokenizer", "tokens", token))
        for token, config in (found.tokenizer.tokens or {}).items()
    }
    return Vocabulary(
        source=_policy(found.tokenizer.source, document, ("tokenizer", "source")),
        tokens=tokens,
        pad_to_multiple_of=found.tokenizer.pad_to_multiple_of,
    )


def _policy(value: Any, document: Document, place: KeyPath) -> str | ModelName:
    return value if value in ("union", "base") else _named(value, document, place)


def _idle(found: _Configuration, document: Document, dialect: Dialect) -> tuple[str, ...]:
    """Return a note on each key and parameter that has no effect, there as here."""
    places = document.idle_keys(found)
    known = {parameter.name for parameter in dialect.parameters}
    for place in document.lines:
        if place[-2:-1] == ("parameters",) and place[-1] not in known:
            document.refuse_slip(place, known)
            places.append(place)
    return tuple(f"`{dotted(place)}` in line {document.line(place)} of the recipe has no effect" for place in places)


def _refuse(document: Document) -> None:
    for key, hint in REFUSED.items():
        for place in document.lines:
            if place and place[-1] == key and "parameters" not in place:
                raise document.error(place, "is not supported", hint=hint)


def read_mergekit(document: Document) -> Recipe:
    """Return the recipe that a document of mergekit's states.

    Raises:
        RecipeError: It is malformed, or asks for what sculpt does not do.
    """
    _refuse(document)
    found = document.validated(_Configuration)
    method = found.merge_method
    if method not in DIALECTS:
        raise document.error(("merge_method",), f"`{method}` is not supported", hint=did_you_mean(method, DIALECTS))
    if bool(found.models) == bool(found.slices):
        raise document.error((), "a recipe has either `models` or `slices`")
    dialect = DIALECTS[method]
    has_base = found.base_model is not None or (found.slices and all(piece.base_model for piece in found.slices))
    if dialect.needs_base and not has_base:
        raise document.error(("merge_method",), f"`{method}` needs a `base_model`")
    models = tuple(
        ModelEntry(model=part.model, settings=_settings(part, document, ("models", index), dialect))
        for index, part in enumerate(found.models or [])
    )
    slices = tuple(
        Slice(
            sources=tuple(
                ModelEntry(
                    model=part.model,
                    layers=_range(part.layer_range, document, ("slices", index, "sources", k)),
                    settings=_settings(part, document, ("slices", index, "sources", k), dialect),
                )
                for k, part in enumerate(piece.sources)
            ),
            base=piece.base_model,
            settings=_settings(piece, document, ("slices", index), dialect),
        )
        for index, piece in enumerate(found.slices or [])
    )
    dtype = "out_dtype" if found.out_dtype else "dtype"
    try:
        run = replace(Settings(), dtype=found.out_dtype or found.dtype, config_from="base")
    except MethodError as error:
        raise document.error((dtype,), error.message, hint=error.hint) from error
    return Recipe(
        method=dialect.method,
        base=found.base_model,
        models=models,
        slices=slices,
        name=found.name,
        settings=_settings(found, document, (), dialect),
        parameters=dialect.parameters,
        defaults=dialect.defaults,
        adjust=dialect.adjust,
        vocabulary=_vocabulary(found, document),
        chat_template=found.chat_template,
        notes=_idle(found, document, dialect),
        run=run,
        content=document.content,
    )


def _range(layers: tuple[int, int], document: Document, place: KeyPath) -> tuple[int, int]:
    if not 0 <= layers[0] < layers[1]:
        raise document.error((*place, "layer_range"), f"expected a first and a later layer, got {list(layers)}")
    return layers
