"""What a plan can be told. Little is imported here: the command line reads it at its start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from ..errors import MethodError
from ..names import selects
from ..typed import Options

Side = Literal["base", "tuned"]


@dataclass(frozen=True, kw_only=True)
class Policies(Options):
    """What to do where base and tuned disagree. Each but another float dtype is an error unless it is allowed by name.

    Attributes:
        on_missing: A tensor of the base that a tuned model lacks; `keep-base` merges what the other models have, and
            `drop` leaves out what the output's configuration has no place for, such as a head.
        on_extra: A tensor that only a tuned model has; `take-tuned` copies those of the first one.
        on_mismatch: Another shape; `keep-base` merges the other models, `take-tuned` copies the tensor that differs.
        on_dtype: Another float dtype, as trainers save in float32; `convert` computes in float32 and stores the base's.
        on_nonfinite: NaN or infinity; `keep` writes the tuned model's element there.
    """

    on_missing: Literal["error", "keep-base", "drop"] = "error"
    on_extra: Literal["error", "drop", "take-tuned"] = "error"
    on_mismatch: Literal["error", "keep-base", "take-tuned"] = "error"
    on_dtype: Literal["error", "convert"] = "convert"
    on_nonfinite: Literal["error", "keep"] = "error"

    def __post_init__(self) -> None:
        for name, annotation in get_type_hints(Policies).items():
            choices = get_args(annotation)
            if getattr(self, name) not in choices:
                raise MethodError(
                    f"`{name}` must be one of {', '.join(choices)}, got `{getattr(self, name)}`", options=[name]
                )


@dataclass(frozen=True, kw_only=True)
class Selection(Options):
    """Which tensors are fused; the others are copied.

    Attributes:
        include: Fuse only tensors whose name matches this glob; may be repeated.
        exclude: Do not fuse tensors whose name matches this glob; may be repeated.
        rest: Where tensors that are not selected are copied from.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rest: Side = "base"

    def covers(self, name: str) -> bool:
        """Return whether a tensor is to be fused."""
        return (not self.include or selects(self.include, name)) and not selects(self.exclude, name)
