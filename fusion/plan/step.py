"""One output tensor of a plan, and what decides about it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, get_args, get_type_hints

from ..checkpoint import TensorInfo
from ..dtypes import DTYPES
from ..errors import MethodError
from ..methods import Method
from ..names import selects

Side = Literal["base", "tuned"]


@dataclass(frozen=True, kw_only=True)
class Policies:
    """What to do where base and tuned disagree. Each is an error unless it is allowed by name.

    Attributes:
        on_missing: A tensor of the base that the tuned model lacks.
        on_extra: A tensor that only the tuned model has.
        on_mismatch: Another shape.
        on_dtype: Another float dtype; `convert` computes in float32 and stores the base's.
        on_nonfinite: NaN or infinity; `keep` writes the tuned model's element there.
    """

    on_missing: Literal["error", "keep-base"] = "error"
    on_extra: Literal["error", "drop", "take-tuned"] = "error"
    on_mismatch: Literal["error", "keep-base", "take-tuned"] = "error"
    on_dtype: Literal["error", "convert"] = "error"
    on_nonfinite: Literal["error", "keep"] = "error"

    def __post_init__(self) -> None:
        for name, annotation in get_type_hints(Policies).items():
            choices = get_args(annotation)
            if getattr(self, name) not in choices:
                option = "--" + name.replace("_", "-")
                raise MethodError(f"`{option}` must be one of {', '.join(choices)}, got `{getattr(self, name)}`")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which tensors are fused; the others are copied from the base, or from the tuned model with `rest="tuned"`."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rest: Side = "base"

    def covers(self, name: str) -> bool:
        """Return whether a tensor is to be fused."""
        return (not self.include or selects(self.include, name)) and not selects(self.exclude, name)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One output tensor.

    Attributes:
        name: In the output.
        action: `fuse`, or `copy` from `source`.
        why: The reason, for the plan and the manifest.
        dtype: As stored in the output, a safetensors code.
        base: The base's tensor, or None.
        tuned: One a tuned model, or None where it has none.
        source: Where a copied tensor, or the tail of a grown one, is copied from.
        num_fused: How many leading elements are fused; less than all of them for a grown vocabulary.
        key: The name that the random numbers are drawn for; tied tensors share one.
        curvature: The name under which calibration has seen it: the first tuned model's.
        method: In place of the run's own, where a recipe has a rule for this tensor.
    """

    name: str
    action: Literal["fuse", "copy"]
    why: str
    dtype: str
    shape: tuple[int, ...]
    base: TensorInfo | None
    tuned: tuple[TensorInfo | None, ...]
    source: Side
    num_fused: int
    key: str
    curvature: str
    method: Method | None = None

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return (self.num_elements * DTYPES[self.dtype].bits + 7) // 8

    @property
    def copied_from(self) -> tuple[int, TensorInfo]:
        """Where a copy, or a grown tail, comes from: 0 for the base, k for tuned model k; and the tensor there."""
        sides = (self.base, *self.tuned) if self.source == "base" else (None, *self.tuned)
        return next((index, info) for index, info in enumerate(sides) if info is not None)

    @property
    def bytes_read(self) -> int:
        """Stored bytes that this step looks at once."""
        if self.action == "copy":
            return self.copied_from[1].nbytes
        return sum(info.nbytes for info in (self.base, *self.tuned) if info is not None)

    @property
    def curvatures(self) -> tuple[str | None, ...]:
        """The names under which calibration of each model has seen it, the base first."""
        others = (info and info.name for info in self.tuned[1:])
        return (self.base and self.base.name, self.curvature, *others)
