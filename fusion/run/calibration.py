"""What a fuse is told of calibration. Nothing heavy is imported: the command line reads it at start."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from ..arithmetic.curvature import Curvature
from ..errors import DataError, MethodError
from ..rows import RowOptions

PathLike = Path | str
Given = PathLike | Mapping[str, Curvature]  # a file of statistics, or statistics in memory
SHIPPED = "default"  # the name of what ships to protect a base on
OF_SHIPPED = f"{SHIPPED}/"  # what the name of one kind of it begins with
GENERAL = "general"  # the name of the same as data: text of many kinds
WEIGHTED = re.compile(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)", re.DOTALL)
KIND_SHARE = 8  # a kind of the general set that is a side of its own has an eighth of the set's tokens, as `chats` have
STATISTICS = ".safetensors"  # what a file of statistics ends with; any other is data
BATCH_TOKENS = 2048  # 135 M on a CPU: as fast as twice as many, an eighth faster than half as many
FROM_DELTA = "delta"  # in place of a model's samples or statistics: its delta stands in for them
# The fuse's own seed and device hold for calibration too. A recipe from elsewhere makes no model's code run, and reads
# no files of its choice.
NOT_IN_RECIPES = ("seed", "device", "trust_remote_code", "media")


@dataclass(frozen=True, kw_only=True)
class SampleRun(RowOptions):
    """How samples are read and run through a model.

    Attributes:
        samples: Largest number of samples to run.
        max_length: Longest sample, in tokens.
        seed: For the choice of samples, if there are more than needed.
        batch_size: Largest number of samples in a batch. They are padded if that changes nothing, otherwise of equal
            length. Default: as many as `batch_tokens` allows; one, if they have images or sound.
        batch_tokens: Largest number of tokens in a batch, with padding; a longer sample runs alone. Default: 2048, or
            no limit if `batch_size` is given. Statistics are the same to float precision, however samples are batched.
        all_experts: Send every token to every expert. Default: to those that its router chooses.
        count: all tokens, or completion: only tokens that are to be predicted, as a loss mask says. For samples of
            the target task; of general samples all tokens count.
        device: auto, cpu, cuda, cuda:1, mps …
        dtype: Dtype of the forward pass. auto: float32 on a CPU, elsewhere that of the weights.
        auto_class: Class of transformers to run, such as AutoModelForMaskedLM. Default: that of the configuration.
        memory: Limit for activations between blocks, such as 4GB. The rest goes to the host's memory, if the model
            runs on an accelerator, then to the disk. Default: half of what is free.
        trust_remote_code: Run model code from the model's folder. Read it first.
    """

    samples: int = 128
    max_length: int = 512
    seed: int = 0
    batch_size: int | None = None
    batch_tokens: int | None = None
    all_experts: bool = False
    count: Literal["all", "completion"] = "all"
    device: str = "auto"
    dtype: str = "auto"
    auto_class: str | None = None
    memory: int | None = None
    trust_remote_code: bool = False

    @property
    def most_tokens(self) -> int | None:
        """The largest number of tokens in a batch; None where only samples are limited."""
        return BATCH_TOKENS if self.batch_size is None and self.batch_tokens is None else self.batch_tokens

    def __post_init__(self) -> None:
        for name in ("samples", "max_length", "batch_size", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"`{name}` must be at least 1, got {value}", options=[name])
        if not 0 <= self.seed < 1 << 63:
            raise DataError(f"`seed` must be at least 0 and below 2⁶³, got {self.seed}", options=["seed"])


@dataclass(frozen=True, kw_only=True)
class GeneralSide:
    """One of the sides that a base is protected on: `G = Σ w·G_k`, each G_k a mean over its own tokens.

    Attributes:
        source: Data, `default` for the general set that ships, `default/KIND` for a kind of it alone, such as
            `default/chats`, or the base's statistics.
        weight: w, above 0.
    """

    source: Given
    weight: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.source, str) and not self.source:
            raise DataError(
                "what the base is to be protected on is an empty name",
                hint=f"`{SHIPPED}` is the general set that ships",
                options=["protect"],
            )
        if not (self.weight > 0 and isfinite(self.weight)):
            raise DataError(f"the weight of `{self.source}` must be above 0, got {self.weight:g}", options=["protect"])

    @classmethod
    def of(cls, given: Given | GeneralSide) -> GeneralSide:
        """Return the side that is given; a name such as `text.jsonl:3` has its weight after the last colon.

        A path that exists is taken as it is, whatever is after its colon.
        """
        if isinstance(given, GeneralSide):
            return given
        found = WEIGHTED.fullmatch(given) if isinstance(given, str) and not Path(given).exists() else None
        return cls(source=given) if found is None else cls(source=found[1], weight=float(found[2]))

    @property
    def is_shipped(self) -> bool:
        """Whether it is the general set that ships, by its name here or as data."""
        return isinstance(self.source, str) and self.source in (SHIPPED, GENERAL)

    @property
    def kind(self) -> str | None:
        """The kind of the general set that it is alone; None of any other side."""
        source = self.source
        if self.is_statistics or not isinstance(source, str) or not source.startswith(OF_SHIPPED):
            return None
        return None if Path(source).exists() else source.removeprefix(OF_SHIPPED)

    @property
    def is_statistics(self) -> bool:
        """Whether nothing has to be measured."""
        return not isinstance(self.source, (Path, str)) or Path(self.source).suffix == STATISTICS

    def __str__(self) -> str:
        if self.is_shipped:
            source = "the general set that ships"
        elif self.kind is not None:
            source = f"`{self.kind}` of the general set"
        else:
            source = f"{self.source}" if isinstance(self.source, (Path, str)) else "statistics in memory"
        return f"{source}" if self.weight == 1 else f"{source} (weight {self.weight:g})"


@dataclass(frozen=True, kw_only=True)
class Calibration(SampleRun):
    """Where the curvature of a fuse comes from.

    Attributes:
        hessian: Statistics that `sculpt calibrate` wrote, or statistics in memory. Then nothing is calibrated. Give
            one for each tuned model, in the same order; `delta` for a model without any.
        data: Samples of the target task, to calibrate on first. Give one for all tuned models, or one for each;
            `delta` for a model without samples. Default: a text that ships with sculpt; if the base is protected, the
            delta.
        enabled: Use statistics. Without them H = I: all inputs count alike.
        of_other_model: Accept statistics that were measured on another model.
        protect: General samples on which the base should stay as it is: data, `default` for the general set that
            ships, `default/chats` for a kind of it, or the base's statistics from `sculpt calibrate BASE --full '*'`.
            Give several to add them up, with weights if you like: `text.jsonl:1`, `default/chats:3`.
        protect_samples: Number of general samples from each data set. The general set has as many tokens as this
            number of samples at full length, the same number for each kind.
        protect_kinds: Kinds of the general set, such as `novels,csv`. Default: all.
        protect_chats: If the base has a chat template, let it answer the questions of the general set, and protect it
            on these chats too.
        protect_keep: Keep the base's statistics on the general set in the cache folder, and use those that are there.
            The next fine-tune of the same base then needs no measuring.
        protect_check: Compare the fused model with its base on every kind of the general set, on rows that were not
            used to protect it, and say how far each kind moved. Both models then read some 4,000 tokens.
    """

    hessian: Given | Sequence[Given] | None = None
    data: PathLike | Sequence[PathLike] | None = None
    enabled: bool = True
    of_other_model: bool = False
    protect: Given | GeneralSide | Sequence[Given | GeneralSide] | None = None
    protect_samples: int = 48  # 8, 32, 128 and 512 differ by less than a point (docs/protecting-the-base.md)
    protect_kinds: tuple[str, ...] = ()
    protect_chats: bool = True
    protect_keep: bool = True
    protect_check: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protect_samples < 1:
            raise DataError(
                f"`protect_samples` must be at least 1, got {self.protect_samples}", options=["protect_samples"]
            )
        object.__setattr__(self, "protect_kinds", tuple(self.protect_kinds))
        for name, is_given in (("protect_kinds", bool(self.protect_kinds)), ("protect_chats", not self.protect_chats)):
            if is_given and not any(side.is_shipped for side in self.sides):
                raise MethodError(
                    f"`{name}` is an option of the general set, `{SHIPPED}`, and the base is not protected on that",
                    options=[name],
                )
        if self.hessian is not None and self.data is not None:
            raise MethodError("`hessian` and `data` exclude each other", options=["hessian", "data"])
        if not self.enabled:
            for name in ("hessian", "data", "protect"):
                if getattr(self, name) is not None:
                    raise MethodError(f"`{name}` has no effect without calibration", options=[name])

    def protecting(self) -> Calibration:
        """Return the same with the general set that ships to protect the base on, where nothing else is named.

        Raises:
            MethodError: Statistics are switched off.
        """
        if not self.enabled:
            raise MethodError("a protection needs statistics, so calibration cannot be off", options=["enabled"])
        return replace(self, protect=SHIPPED) if self.protect is None else self

    def files(self) -> list[Path]:
        """Return every path that it names: of data, and of statistics."""
        own = [side.source for side in self.sides if not side.is_shipped and side.kind is None]
        general = None if self.protect is None else own
        return [
            Path(path)
            for given in (self.hessian, self.data, general)
            for path in (given if isinstance(given, (list, tuple)) else [given])
            if isinstance(path, (Path, str)) and str(path) not in (FROM_DELTA, GENERAL)
        ]

    @property
    def sides(self) -> tuple[GeneralSide, ...]:
        """What a base is protected on: what is given, else the general set that ships."""
        given = SHIPPED if self.protect is None else self.protect
        several: list[Any] = [*given] if isinstance(given, (list, tuple)) else [given]
        return tuple(map(GeneralSide.of, several))

    @property
    def has_samples(self) -> bool:
        """Whether samples or statistics of the target task were given: this one's own, not those of a list."""
        given = self.hessian if self.hessian is not None else self.data
        return given is not None and not (isinstance(given, (Path, str)) and str(given) == FROM_DELTA)

    def said(self) -> dict[str, Any]:
        """Return what a recipe says of it: all that is not as by default, files by their names alone.

        Nothing of statistics in memory, nor of what changes no bit of an output.
        """
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in (*NOT_IN_RECIPES, "memory", "protect_keep") or value is None or value == field.default:
                continue
            found[field.name] = _named(value) if field.name in ("hessian", "data", "protect") else _plain(value)
        return {key: value for key, value in found.items() if value is not None}

    def of_general(self) -> list[Calibration]:
        """Return the same for each general side: what it is measured on, or its statistics.

        All tokens of a general side count: a base is to stay as it is where it reads, not where it answers alone.
        """
        unset = replace(
            self,
            hessian=None,
            data=None,
            protect=None,
            protect_kinds=(),
            protect_chats=True,
            samples=self.protect_samples,
            count="all",
        )
        shipped = replace(unset, data=GENERAL, protect=SHIPPED, protect_chats=self.protect_chats)
        found: list[Calibration] = []
        for side in self.sides:
            if side.is_statistics:
                found.append(replace(unset, hessian=side.source))
            elif side.is_shipped:
                found.append(replace(shipped, protect_kinds=self.protect_kinds))
            elif side.kind is not None:
                samples = max(1, self.protect_samples // KIND_SHARE)
                found.append(replace(shipped, protect_kinds=(side.kind,), samples=samples))
            else:
                found.append(replace(unset, data=side.source))
        return found

    def of_tuned(self, num_models: int) -> list[Calibration]:
        """Return the same for each tuned model.

        Raises:
            MethodError: There are statistics for another number of models.
        """
        hessians = _one_each("statistics", self.hessian, num_models, shared=False)
        data = _one_each("samples", self.data, num_models, shared=True)
        return [replace(self, hessian=h, data=d) for h, d in zip(hessians, data, strict=True)]


def _named(given: Any) -> Any:
    """Return what a recipe calls data or statistics; None of those in memory."""
    if isinstance(given, (list, tuple)):
        return [_named(one) for one in given]
    side = GeneralSide.of(given)
    if not isinstance(side.source, (Path, str)):
        return None
    name = Path(side.source).name if Path(side.source).exists() else str(side.source)
    weight = f"{side.weight:g}"
    return name if side.weight == 1 else f"{name}:{weight if float(weight) == side.weight else side.weight}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _one_each(what: str, given: Any, num_models: int, *, shared: bool) -> list[Any]:
    if given is None:
        return [None] * num_models
    found = list(given) if isinstance(given, (list, tuple)) else [given]
    if len(found) == 1 and shared:
        return found * num_models
    if len(found) != num_models:
        wanted = "one tuned model" if num_models == 1 else f"{num_models} tuned models"
        name = "data" if shared else "hessian"
        raise MethodError(
            f"there {'is' if num_models == 1 else 'are'} {wanted}, and {what} of {len(found)}",
            hint=f"`{name}` takes one for each, in the order of the models; `{FROM_DELTA}` for a model without any",
            options=[name],
        )
    return found
