"""What a recipe says, whichever schema it was written in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import MethodError
from ..methods import Method
from ..plan.options import Side
from ..run.settings import Settings
from .setting import OptionSettings, first_of, told


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """A checkpoint by its path, and an adapter on it."""

    path: str
    adapter: str | None = None

    def __str__(self) -> str:
        return self.path if self.adapter is None else f"{self.path}+{self.adapter}"


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model that takes part.

    Attributes:
        layers: First and one past the last of its layers; None is all of them.
        settings: Its own.
    """

    model: ModelName
    layers: tuple[int, int] | None = None
    settings: OptionSettings = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Consecutive layers of the output.

    Attributes:
        base: In place of the recipe's own.
    """

    sources: tuple[ModelEntry, ...]
    base: ModelName | None = None
    settings: OptionSettings = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """How a parameter of a recipe becomes an option of a method.

    Attributes:
        name: In the recipe.
        option: Of the method; None is accepted and has no effect here.
        per_model: Whether each model may have its own.
        required: Whether a model may not go without one that others have.
    """

    name: str
    option: str | None
    per_model: bool = False
    required: bool = False
    convert: Callable[[Any], Any] = lambda value: value

    def value(self, given: Any) -> Any:
        """Return the option's value of the recipe's.

        Raises:
            MethodError: It can be none.
        """
        try:
            return self.convert(given)
        except (TypeError, ValueError, OverflowError) as error:
            raise MethodError(f"`{self.name}` cannot be `{given}`") from error


@dataclass(frozen=True, kw_only=True)
class TokenSource:
    """Where the embedding of a token comes from, in models that lack it.

    Attributes:
        model: None is no model: `zero` says so.
        token: A token of that model, by text or id; None is the same token.
        force: Also in models that have the token.
    """

    model: ModelName | None = None
    token: str | int | None = None
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Which tokenizer the output has.

    Attributes:
        source: `base`, `union`, or the model whose tokenizer is taken.
        tokens: For tokens that want a certain embedding.
        pad_to_multiple_of: The number of rows of the embedding.
    """

    source: str | ModelName = "base"
    tokens: Mapping[str, TokenSource] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A merge.

    Attributes:
        name: Of the result, where other documents of the same file use it.
        base: What deltas are taken from; None for methods that average models.
        models: Those that are merged whole, or none where `slices` say what each layer is made of.
        parameters: What `settings` may hold.
        defaults: Options whose defaults differ in the schema's dialect.
        adjust: Makes a method's options of what the parameters gave.
        overrides: Options that win over all others.
        keep: Globs of tensors that are copied, and from where.
        chat_template: `auto`, a format's name, or the template itself; None leaves what the tokenizer has.
        notes: What it says without effect.
        calibration: What it says of where the curvature comes from, by the fields of `Calibration`.
        content: The file's own words, for the manifest.
    """

    method: type[Method]
    base: ModelName | None
    models: tuple[ModelEntry, ...] = ()
    slices: tuple[Slice, ...] = ()
    name: str | None = None
    settings: OptionSettings = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    adjust: Callable[[dict[str, Any]], dict[str, Any]] = dict
    overrides: Mapping[str, Any] = field(default_factory=dict)
    keep: tuple[tuple[tuple[str, ...], Side], ...] = ()
    vocabulary: Vocabulary | None = None
    chat_template: str | None = None
    notes: tuple[str, ...] = ()
    run: Settings = field(default_factory=Settings)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)

    def named_models(self) -> list[ModelName]:
        """Return all models once: the base first, then in the order in which they are named."""
        found = [self.base] if self.base else []
        found += [source.model for source in self.models]
        for piece in self.slices:
            found += [piece.base] if piece.base else []
            found += [source.model for source in piece.sources]
        return list(dict.fromkeys(found))

    def method_for(
        self,
        name: str,
        t: float,
        *,
        sources: Sequence[ModelEntry],
        names: Sequence[str],
        piece: OptionSettings | None = None,
        baseless: bool = False,
    ) -> Method:
        """Return the method of one tensor, its options spelled out.

        Args:
            name: Of the tensor in the output.
            t: How far through the layers it is, in [0, 1].
            sources: The models that take part, what stands for the base first.
            names: The tensor's name in each of them.
            piece: Settings of the slice.
            baseless: There is no base: the first of the models stands in its place.

        Raises:
            MethodError: An option is out of its range, one that each model must have is missing, or a base is.
        """
        shared = [piece or {}, self.settings]
        options = dict(self.defaults)
        if baseless and "origin" in {f.name for f in fields(self.method)}:
            options["origin"] = "zero"
        for parameter in self.parameters:
            if parameter.option is not None and not parameter.per_model:
                value = first_of(shared, parameter.name, name, t)
                if value is not None:
                    options[parameter.option] = parameter.value(value)
        counts_base = self._made(options).counts_base
        if baseless and not counts_base:
            raise MethodError(f"{self.method.title} needs a base")
        if not counts_base:
            sources, names = sources[1:], names[1:]
        for parameter in self.parameters:
            if parameter.option is None or not parameter.per_model:
                continue
            values = [
                first_of((source.settings, *shared), parameter.name, own, t)
                for source, own in zip(sources, names, strict=True)
            ]
            if all(value is None for value in values):
                continue
            if len(values) == 1 or any(isinstance(value, tuple) for value in values):
                options[parameter.option] = parameter.value(values[0])
                continue
            missing = [str(source.model) for source, value in zip(sources, values, strict=True) if value is None]
            if missing and parameter.required:
                raise MethodError(f"`{name}`: `{missing[0]}` has no `{parameter.name}`, and other models have")
            default = options.get(parameter.option, self._default(parameter.option))
            spelled = tuple(default if v is None else parameter.value(v) for v in values)
            # One number for all, as a flag gives it: the same options are then recorded alike.
            options[parameter.option] = spelled[0] if len(set(spelled)) == 1 else spelled
        return self._made(options)

    def _made(self, options: Mapping[str, Any]) -> Method:
        return self.method(**{**self.adjust(dict(options)), **self.overrides})

    def _default(self, option: str) -> Any:
        return next(field.default for field in fields(self.method) if field.name == option)

    def told_options(self, methods: Sequence[Method]) -> dict[str, Any]:
        """Return the options of all tensors for the manifest: as the recipe has them where tensors differ.

        Args:
            methods: Of the tensors, one or more.
        """
        options = methods[0].options()
        for option, value in options.items():
            if any(method.options()[option] != value for method in methods[1:]):
                parameter = next((p for p in self.parameters if p.option == option), None)
                options[option] = "another for each tensor" if parameter is None else self._told(parameter)
        return options

    def _told(self, parameter: Parameter) -> Any:
        parts = [self.models] if not self.slices else [piece.sources for piece in self.slices]
        pieces: list[OptionSettings] = [piece.settings for piece in self.slices] or [{}]
        found = [
            [told(settings[parameter.name], parameter.value) if parameter.name in settings else None
             for settings in ({**self.settings, **piece, **source.settings} for source in sources)]
            for piece, sources in zip(pieces, parts, strict=True)
        ]  # fmt: skip
        # One value for all is said once; else a value for each model, in a list for each slice.
        return _once([_once(values) for values in found])

    def between(self, base: Path, tuned: Sequence[Path]) -> Recipe:
        """Return the recipe for these models; those that it names itself give only their settings.

        Raises:
            MethodError: It names another number of models, or is made of slices.
        """
        if self.slices:
            raise MethodError("a recipe of slices names its own models", hint="`sculpt merge` runs it")
        if self.models and len(self.models) != len(tuned):
            raise MethodError(f"the recipe is for {len(self.models)} models, got {len(tuned)}")
        settings = [source.settings for source in self.models] or [{}] * len(tuned)
        models = tuple(
            ModelEntry(model=ModelName(path=str(path)), settings=own) for path, own in zip(tuned, settings, strict=True)
        )
        return replace(self, base=ModelName(path=str(base)), models=models)


def _once(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else values
