"""Dataclasses as groups of command-line options: a field is a flag, its docstring entry is the flag's help."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer


def attribute_docs(cls: type) -> dict[str, str]:
    """Return the `Attributes:` section of a class docstring as field name to text; `a, b: text` serves both."""
    docs: dict[str, str] = {}
    text = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:")[2]
    names: list[str] = []
    for line in text.splitlines():
        entry = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if entry:
            names = entry[1].split(", ")
            docs |= dict.fromkeys(names, entry[2].strip())
        elif line.startswith("        "):
            for name in names:
                docs[name] += " " + line.strip()
        elif line.strip():
            break
    return docs


def option_docs(cls: type) -> dict[str, str]:
    """Return the help of every field of a dataclass, inherited ones included."""
    docs: dict[str, str] = {}
    for ancestor in reversed(cls.__mro__):
        docs |= attribute_docs(ancestor)
    return docs


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def takes_numbers(hint: object) -> bool:
    """Return whether a field's type has room for several numbers; its flag is then a list such as `1,1,0.5`."""
    return any(get_origin(part) is tuple and float in get_args(part) for part in (hint, *get_args(hint)))


def parse_numbers(text: str, flag: str) -> float | tuple[float, ...]:
    """Return the number of `0.5`, or the numbers of `1,1,0.5`."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"`{text}` is not a list of numbers such as 1,1,0.5", param_hint=flag) from error
    return values[0] if len(values) == 1 else values


def _numbers_text(values: Any) -> str | None:
    return None if values is None else ",".join(f"{v:g}" for v in (values if isinstance(values, tuple) else (values,)))


def _built(cls: type, values: dict[str, Any]) -> Any:
    hints = get_type_hints(cls)
    return cls(
        **{
            name: parse_numbers(value, _flag(name)) if isinstance(value, str) and takes_numbers(hints[name]) else value
            for name, value in values.items()
        }
    )


def _parameters(cls: type, panel: str) -> list[inspect.Parameter]:
    hints, docs = get_type_hints(cls, include_extras=True), option_docs(cls)
    found = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        has_option = get_origin(hint) is Annotated and any(
            isinstance(extra, typer.models.OptionInfo) for extra in get_args(hint)[1:]
        )
        if not has_option:
            flag = _flag(field.name)
            names = [f"{flag}/--no-{flag[2:]}"] if hint is bool else [flag]
            metavar = "N[,N…]" if takes_numbers(hint) else None
            option = typer.Option(*names, help=docs.get(field.name, ""), rich_help_panel=panel, metavar=metavar)
            hint = Annotated[str if takes_numbers(hint) else hint, option]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if takes_numbers(hints[field.name]):
            default = _numbers_text(default)
        found.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint))
    return found


def with_options(**groups: tuple[type, str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that turns parameters of a command into groups of options.

    Args:
        groups: Parameter name to (dataclass, title of its panel in the help). The command gets an instance.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name not in groups and p.kind is not p.VAR_KEYWORD]
        expanded = {name: _parameters(cls, panel) for name, (cls, panel) in groups.items()}
        parameters = [*own, *(parameter for found in expanded.values() for parameter in found)]

        @functools.wraps(function)
        def command(**values: Any) -> None:
            built = {
                name: _built(groups[name][0], {parameter.name: values.pop(parameter.name) for parameter in found})
                for name, found in expanded.items()
            }
            function(**values, **built)

        del command.__wrapped__
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue, reportFunctionMemberAccess]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def given_flags(context: typer.Context) -> set[str]:
    """Return the parameters of a command that were given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
