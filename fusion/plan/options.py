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
    """What to do if base and tuned model disagree. Except for another float dtype, each is an error by default.

    Attributes:
        on_missing: A tensor of the base is missing in a tuned model. `keep-base` uses the models that have it; `drop`
            leaves out tensors that the output's configuration does not have, such as a head.
        on_extra: A tensor is only in a tuned model. `take-tuned` copies those of the first tuned model.
        on_mismatch: A tensor has another shape. `keep-base` uses the other models; `take-tuned` copies this tensor.
        on_dtype: A tensor has another float dtype. `convert` computes in float32 and stores the base's dtype.
        on_nonfinite: A tensor has NaN or infinity. `keep` writes the tuned model's element there.
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
        rest: Model from which the other tensors are copied.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rest: Side = "base"

    def covers(self, name: str) -> bool:
        """Return whether a tensor is to be fused."""
        return (not self.include or selects(self.include, name)) and not selects(self.exclude, name)
