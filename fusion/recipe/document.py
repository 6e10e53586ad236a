"""YAML with line numbers: what a file says, and where it says it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import RecipeError, did_you_mean, first_line

KeyPath = tuple[str | int, ...]  # keys and indices from the top
Schema = TypeVar("Schema", bound=BaseModel)
# Of one file; the longest recipes that people write have a few hundred items.
MAX_CHARACTERS, MAX_ITEMS, MAX_DEPTH = 1 << 21, 50_000, 50


@dataclass(frozen=True, kw_only=True, eq=False)
class Document:
    """One YAML document.

    Attributes:
        file: Where it was read.
        content: A mapping.
        lines: The line of each key and list item, from 1.
    """

    file: Path
    content: Mapping[str, Any]
    lines: Mapping[KeyPath, int]

    def line(self, place: Sequence[str | int]) -> int:
        """Return the line of a place, or of what holds it."""
        for length in range(len(place), -1, -1):
            if tuple(place[:length]) in self.lines:
                return self.lines[tuple(place[:length])]
        return 1

    def error(self, place: Sequence[str | int], message: str, *, hint: str | None = None) -> RecipeError:
        """Return the error that something at a place is wrong."""
        told = f"`{dotted(place)}`: {message}" if place else message
        return RecipeError(self.file, self.line(place), told, hint=hint)

    def validated(self, schema: type[Schema]) -> Schema:
        """Return the content as a pydantic model, whose validators have the file's folder as their context.

        Raises:
            RecipeError: It does not fit; the first misfit is told, with its line.
        """
        try:
            return schema.model_validate(self.content, context=self.file.parent)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place, about = self._place(first["loc"]), first.get("ctx", {})
            if first["type"] == "extra_forbidden":
                hint = did_you_mean(str(place[-1]), _keys_at(schema, place[:-1]))
                raise self.error(place, "unknown key", hint=hint) from error
            if first["type"] == "missing":
                raise self.error(place, f"`{first['loc'][-1]}` is missing") from error
            if first["type"] == "union_tag_invalid":
                known = [tag.strip("' ") for tag in about["expected_tags"].split(",")]
                key, tag = about["discriminator"].strip("'"), about["tag"]
                raise self.error(place, f"no {key} is called `{tag}`", hint=did_you_mean(tag, known)) from error
            if first["type"] == "union_tag_not_found":
                key = about["discriminator"].strip("'")
                raise self.error(place, f"`{key}` is missing") from error
            message = first["msg"].removeprefix("Value error, ")
            raise self.error(place, message[:1].lower() + message[1:]) from error

    def idle_keys(self, found: BaseModel, place: KeyPath = ()) -> list[KeyPath]:
        """Return the keys that a model whose schema allows others has no field for.

        Raises:
            RecipeError: One comes near the name of a field, so that it is a slip.
        """
        idle = []
        for key in found.model_extra or {}:
            self.refuse_slip((*place, key), type(found).model_fields)
            idle.append((*place, key))
        for name in type(found).model_fields:
            value, own = getattr(found, name), (*place, name)
            value = dict(enumerate(value)) if isinstance(value, list) else value
            parts = {(*own, key): part for key, part in value.items()} if isinstance(value, Mapping) else {own: value}
            for where, part in parts.items():
                if isinstance(part, BaseModel):
                    idle += self.idle_keys(part, where)
        return idle

    def refuse_slip(self, place: KeyPath, known: Collection[str]) -> None:
        """Refuse a key that is unknown here and comes near one that is known."""
        if difflib.get_close_matches(str(place[-1]), known, n=1):
            raise self.error(place, "unknown key", hint=did_you_mean(str(place[-1]), known))

    def _place(self, location: Sequence[str | int]) -> KeyPath:
        """Return pydantic's location without the names of a union's branches."""
        place: list[str | int] = []
        content: Any = self.content
        for part in location:
            if isinstance(content, list):
                content = dict(enumerate(content))
            if isinstance(content, dict) and part in content:
                content = content[part]
                place.append(part)
        return tuple(place)


def dotted(place: Sequence[str | int]) -> str:
    """Return a place as text, such as `models[0].parameters`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


def _keys_at(schema: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    keys = {field.alias or name: field.annotation for name, field in schema.model_fields.items()}
    for part in place:
        if isinstance(part, int):
            continue
        models = _models_in(keys.get(part))
        keys = {field.alias or name: field.annotation for model in models for name, field in model.model_fields.items()}
    return list(keys)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def read_documents(file: Path) -> list[Document]:
    """Return the documents of a YAML file.

    Raises:
        RecipeError: It cannot be read, is not YAML, or a document is not a mapping.
    """
    found = []
    loader = None
    try:
        text = file.read_text(encoding="utf-8")
        if len(text) > MAX_CHARACTERS:
            raise RecipeError(file, None, f"has {len(text)} characters, and {MAX_CHARACTERS} may be read")
        loader = yaml.SafeLoader(text)
        while loader.check_node():
            node: Any = loader.get_node()
            lines = _lines_of(node)
            content = loader.construct_document(node)
            if content is None:
                continue
            if not isinstance(content, dict):
                raise RecipeError(file, node.start_mark.line + 1, "a recipe is a mapping of keys to values")
            found.append(Document(file=file, content=content, lines=lines))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RecipeError(file, mark.line + 1 if mark else None, f"not YAML: {error.problem}") from error
    except RecursionError as error:
        raise RecipeError(file, None, "is nested too deeply") from error
    except (
        OSError,
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        # All but the first two are PyYAML's on `2001-13-45`, `!!int x`, `!!timestamp x`.
        raise RecipeError(file, None, f"cannot be read: {first_line(error)}") from error
    finally:
        if loader is not None:
            loader.dispose()
    if not found:
        raise RecipeError(file, None, "the recipe is empty")
    return found


def _lines_of(node: Any) -> dict[KeyPath, int]:
    """Return the line of each key and list item.

    An alias is looked at wherever it stands, as everything will be that reads the content: a few lines of aliases of
    aliases are a billion items.

    Raises:
        MarkedYAMLError: A key is given twice or is no scalar, or there are too many items or levels of them.
    """
    lines: dict[KeyPath, int] = {}

    def note(node: Any, place: KeyPath) -> None:
        if len(lines) > MAX_ITEMS or len(place) > MAX_DEPTH:
            problem = f"more than {MAX_ITEMS} items, or {MAX_DEPTH} levels of them"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        lines.setdefault(place, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.constructor.ConstructorError(None, None, "a key is not a single word", key.start_mark)
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"`{key.value}` is given twice", key.start_mark)
                seen.add(key.value)
                lines[(*place, key.value)] = key.start_mark.line + 1
                note(value, (*place, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                note(item, (*place, index))

    note(node, ())
    return lines
