"""One output tensor of a plan, and what decides about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Literal, NamedTuple

from ..checkpoint import TensorInfo
from ..dtypes import BY_TORCH_NAME, DTYPES, SHORT
from ..errors import MethodError, Way, near
from ..methods import Method
from .options import Policies, Selection, Side

# What allows a disagreement: values of a policy, and what they do.
WAYS = {
    "on_missing": (
        Way(option="on_missing", value="keep-base", effect="keeps the base's where no other model has them"),
        Way(option="on_missing", value="drop", effect="leaves them out"),
    ),
    "on_extra": (
        Way(option="on_extra", value="take-tuned", effect="copies such tensors"),
        Way(option="on_extra", value="drop", effect="leaves them out"),
    ),
    "on_further_extra": (Way(option="on_extra", value="drop", effect="leaves such tensors out"),),
    "on_mismatch": (
        Way(option="on_mismatch", value="keep-base", effect="leaves the model out where it differs"),
        Way(option="on_mismatch", value="take-tuned", effect="from the tuned model"),
    ),
    "vocabulary": (
        Way(option="tokenizer", value="union", effect="aligns the vocabularies by their tokenizers"),
        Way(option="on_mismatch", value="keep-base", effect="keeps the base's rows alone"),
    ),
    "on_dtype": (Way(option="on_dtype", value="convert", effect="computes in float32 and stores the base's dtype"),),
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of every tensor of a plan, whatever the method and whoever asks: a command or a recipe.

    Attributes:
        config_from: Whose names, shapes and configuration the output has; the base's where nothing is tuned.
        dtype: torch name of the float dtype to store, or None for the base's.
        keep: Globs of output names that are copied although they are selected, and from where.
    """

    selection: Selection = field(default_factory=Selection)
    policies: Policies = field(default_factory=Policies)
    config_from: Side = "tuned"
    dtype: str | None = None
    keep: tuple[tuple[tuple[str, ...], Side], ...] = ()

    def __post_init__(self) -> None:
        if self.dtype is not None and not (self.dtype in BY_TORCH_NAME and BY_TORCH_NAME[self.dtype].fusible):
            choices = [found.torch for found in DTYPES.values() if found.fusible]
            raise MethodError(
                f"`dtype` must be one of {', '.join(choices)}, got `{self.dtype}`",
                hint=near(SHORT.get(self.dtype.lower(), self.dtype), choices),
                options=["dtype"],
            )

    def stored_as(self, info: TensorInfo) -> str:
        """Return the code of the dtype in which a tensor like this one is stored."""
        return BY_TORCH_NAME[self.dtype].code if self.dtype is not None and info.kind.fusible else info.stored


class Step(NamedTuple):
    """One output tensor. A named tuple: plans have 100,000, and it is quickly made.

    Attributes:
        name: In the output.
        action: `fuse`, or `copy` from `source`.
        why: The reason, for the plan and the manifest.
        dtype: As stored in the output, a safetensors code.
        base: The base's tensor, or None.
        tuned: One a tuned model, or None where it has none.
        origin: Which model a copied tensor, or the tail of a grown one, is copied from: 0 the base, k tuned model k.
        num_fused: How many leading elements are fused; less than all of them for a vocabulary that was resized.
        key: The name that the random numbers are drawn for; tied tensors share one.
        seen: What calibration of each model calls it, the base's first, where a model calls it otherwise than its own
            tensor is called; else None.
        differs: Whether a tuned model's tensor is not the base's, where a copied one was looked at; None without both.
        method: In place of the run's own, where a recipe has a rule for this tensor.
    """

    name: str
    action: Literal["fuse", "copy"]
    why: str
    dtype: str
    shape: tuple[int, ...]
    base: TensorInfo | None
    tuned: tuple[TensorInfo | None, ...]
    origin: int
    num_fused: int
    key: str
    seen: tuple[str | None, ...] | None = None
    differs: bool | None = None
    method: Method | None = None

    @property
    def curvatures(self) -> tuple[str | None, ...]:
        """What calibration of each model calls it, the base's first; None where a model has no such tensor."""
        if self.seen is not None:
            return self.seen
        return tuple([None if info is None else info.name for info in (self.base, *self.tuned)])

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return (self.num_elements * DTYPES[self.dtype].bits + 7) // 8

    @property
    def source(self) -> Side:
        """The side that a copy is from."""
        return "tuned" if self.origin else "base"

    @property
    def copied_from(self) -> TensorInfo:
        """The tensor that a copy, or a grown tail, comes from; `origin` has it."""
        info = (self.base, *self.tuned)[self.origin]
        assert info is not None  # the plan chose one that is there
        return info

    @property
    def bytes_read(self) -> int:
        """Stored bytes that this step looks at once."""
        if self.action == "copy":
            return self.copied_from.nbytes
        return sum(info.nbytes for info in (self.base, *self.tuned) if info is not None)
