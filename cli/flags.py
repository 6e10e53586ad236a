"""Dataclasses as groups of command-line options: a field is a flag, its docstring entry is the flag's help."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from .devices import own_device


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FlagGroup:
    """A dataclass as options of a command, which gets an instance of it.

    Attributes:
        of: The dataclass.
        panel: The options' title in the help; None is the command's own.
        panels: Other titles, by field.
        flags: By field, the parameter that stands for it, where that is not the field's own name.
        leave_out: Fields that are no options of this command.
        options: By field, the type of an option that does not follow from the field's.
        convert: By field, what makes the field's value of the option's.
    """

    of: type
    panel: str | None = None
    panels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    convert: Mapping[str, Callable[[Any], Any]] = dataclasses.field(default_factory=dict)

    @property
    def fields(self) -> list[tuple[dataclasses.Field[Any], str]]:
        """Each field that is an option, and its parameter; what the class adds to its bases comes first."""
        own = inspect.get_annotations(self.of)
        found = [field for field in dataclasses.fields(self.of) if field.name not in self.leave_out]
        found.sort(key=lambda field: field.name not in own)
        return [(field, self.flags.get(field.name, field.name)) for field in found]

    def only(self, *names: str) -> FlagGroup:
        """Return the group with these fields alone."""
        others = [field.name for field in dataclasses.fields(self.of) if field.name not in names]
        return dataclasses.replace(self, leave_out=tuple(others))

    def chosen(self, instance: Any, given: Collection[str]) -> dict[str, Any]:
        """Return the values of an instance whose flags were given, by field."""
        return {field.name: getattr(instance, field.name) for field, parameter in self.fields if parameter in given}


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


def flag_of(parameter: str) -> str:
    """Return the flag of a parameter, or of a field that has its name."""
    return "--" + parameter.replace("_", "-")


def takes_numbers(hint: object) -> bool:
    """Return whether a field's type has room for several numbers; its flag is then a list such as `1,1,0.5`."""
    return any(get_origin(part) is tuple and float in get_args(part) for part in (hint, *get_args(hint)))


def _takes_texts(hint: object) -> bool:
    return get_origin(hint) is tuple and str in get_args(hint)


def parse_numbers(text: str, flag: str) -> float | tuple[float, ...]:
    """Return the number of `0.5`, or the numbers of `1,1,0.5`."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"`{text}` is not a list of numbers such as 1,1,0.5", param_hint=flag) from error
    return values[0] if len(values) == 1 else values


def _takes_pairs(hint: object) -> Any:
    """Return the type of the values of a mapping of what can be typed; None where the field is none."""
    found = (get_args(part)[1] for part in (hint, *get_args(hint)) if get_origin(part) is Mapping)
    return next((of for of in found if of in (str, Any)), None)


def parse_pairs(text: str, flag: str, of: type) -> dict[str, Any]:
    """Return the pairs of `prompt=question,completion=answer`; values that may be anything are read as JSON is."""
    found: dict[str, Any] = {}
    for pair in text.split(","):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not (name and equals and value):
            raise typer.BadParameter(f"`{text}` is not a list of pairs such as prompt=question", param_hint=flag)
        try:
            found[name] = value if of is str else json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _numbers_text(values: Any) -> str | None:
    return None if values is None else ",".join(f"{v:g}" for v in (values if isinstance(values, tuple) else (values,)))


def _built(group: FlagGroup, values: Mapping[str, Any]) -> Any:
    """Return an instance of the group's dataclass, of the values of its parameters."""
    hints, made = get_type_hints(group.of), {}
    for field, parameter in group.fields:
        value, hint = values[parameter], hints[field.name]
        if isinstance(value, str) and takes_numbers(hint):
            value = parse_numbers(value, flag_of(parameter))
        elif field.name in group.convert:
            value = group.convert[field.name](value)
        elif _takes_texts(hint):
            value = tuple(value or ())
        elif isinstance(value, str) and (kind := _takes_pairs(hint)) is not None:
            value = parse_pairs(value, flag_of(parameter), kind)
        made[field.name] = value
    return group.of(**made)


def _option(hint: Any, parameter: str, text: str, panel: str | None) -> Any:
    flag = flag_of(parameter)
    names = [f"{flag}/--no-{flag[2:]}"] if hint is bool else [flag]
    if parameter == "device":
        names.append("--devices")
    metavar = "N[,N…]" if takes_numbers(hint) else "GLOB" if _takes_texts(hint) else None
    kind = str if takes_numbers(hint) else list[str] | None if _takes_texts(hint) else hint
    if _takes_pairs(hint) is not None:
        metavar, kind = "NAME=VALUE[,…]", str | None
    return Annotated[kind, typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar)]


@functools.cache  # most groups are those of thirty commands
def _parameters(group: FlagGroup) -> list[inspect.Parameter]:
    hints, docs = get_type_hints(group.of, include_extras=True), option_docs(group.of)
    found = []
    for field, parameter in group.fields:
        hint = group.options.get(field.name, hints[field.name])
        panel = group.panels.get(field.name, group.panel)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        option = next((extra for extra in get_args(hint)[1:] if isinstance(extra, typer.models.OptionInfo)), None)
        if option is not None:  # what it does not say itself is the field's
            option = copy.copy(option)
            option.help = option.help or docs.get(field.name, "")
            option.rich_help_panel = option.rich_help_panel or panel
            hint = Annotated[get_args(hint)[0], option]
        else:
            if takes_numbers(hint):
                default = _numbers_text(default)
            elif _takes_texts(hint):
                default = None if not default else [*default]  # pyright: ignore[reportGeneralTypeIssues]
            hint = _option(hint, parameter, docs.get(field.name, ""), panel)
        found.append(inspect.Parameter(parameter, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint))
    return found


def with_options(**groups: FlagGroup) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that turns parameters of a command into groups of options.

    Args:
        groups: By parameter of the command.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name not in groups and p.kind is not p.VAR_KEYWORD]
        parameters = [*own, *(parameter for group in groups.values() for parameter in _parameters(group))]

        @functools.wraps(function)
        def command(**values: Any) -> None:
            if isinstance(values.get("device"), str):
                values["device"] = own_device(values["device"])
            built = {name: _built(group, values) for name, group in groups.items()}
            function(**{p.name: values[p.name] for p in own}, **built)

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
