"""What was done to one tensor, in figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import sqrt
from types import MappingProxyType
from typing import Any

import numpy as np

from ..checkpoint.json_file import checked
from ..plan.plan import Step

NONE: Mapping[str, float] = MappingProxyType({})  # one for all the tensors of which nothing is said


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRecord:
    """One output tensor. The counts and norms are None for a tensor that was copied.

    Attributes:
        num_fused: Elements that the method ran over; fewer than `num_elements` for a grown vocabulary.
        kept: Non-zero deltas that had a part in the result.
        zero_deltas: Elements that fine-tuning did not change.
        clipped: Keep probabilities cut at 1.
        delta_l1: Σ|δ|, over all tuned models; where the base is protected, of the deltas that are left.
        own_delta_l1: Σ|δ| of the tuned models themselves where the base is protected; else None.
        distance_l1, distance_l2: Norms of the stored result minus the base.
        options: Of the method, where a recipe gave the tensor its own; else None, and the run's hold.
        differs: Of a copied tensor, whether a tuned model's is not the base's, as samples tell; None without both.
        measured: Whether it was fused with measured curvature, not with H = I.
        protected: How its delta was mixed by two-sided curvature: `full`, `block:N`, `diagonal`; `target alone` or
            `general alone` where only one side reached it, `interpolation` where neither did, of
            some experts of a stack as in `full but interpolation of 4 17`; None without.
        figures: What the method's reduction learned, such as the expected loss.
        digest: `xxh3-128:hex` of the tensor's bytes in its file. While a run is under way, what `TensorTask` makes of
            the pieces as they are written, to know them again on resuming.
    """

    name: str
    action: str
    why: str
    dtype: str
    shape: tuple[int, ...]
    num_fused: int
    kept: int | None
    zero_deltas: int | None
    clipped: int | None
    delta_l1: float | None
    distance_l1: float | None
    distance_l2: float | None
    figures: Mapping[str, float] = field(default_factory=dict)
    differs: bool | None = None
    measured: bool = False
    protected: str | None = None
    options: Mapping[str, Any] | None = None
    own_delta_l1: float | None = None
    digest: str = ""

    @property
    def fine_tuned_l1(self) -> float | None:
        """Σ|δ| of the tuned models as they are, whether the base is protected or not."""
        return self.delta_l1 if self.own_delta_l1 is None else self.own_delta_l1

    @property
    def realised_sparsity(self) -> float | None:
        """Fraction of the fused elements whose delta was dropped or zero."""
        return None if self.kept is None or not self.num_fused else 1 - self.kept / self.num_fused

    @classmethod
    def of(
        cls,
        step: Step,
        totals: np.ndarray | None,
        figures: Mapping[str, float],
        digest: str,
        *,
        measured: bool = False,
        protected: str | None = None,
    ) -> TensorRecord:
        """Build the record from the totals of `methods.method.measure`."""
        norms: dict[str, Any] = dict.fromkeys(
            ("kept", "zero_deltas", "clipped", "delta_l1", "distance_l1", "distance_l2")
        )
        if totals is not None:
            norms = {
                "kept": int(totals[0]),
                "zero_deltas": int(totals[1]),
                "clipped": int(totals[2]),
                "delta_l1": float(totals[3]),
                "distance_l1": float(totals[4]),
                "distance_l2": sqrt(float(totals[5])),
                "own_delta_l1": float(totals[6]) if len(totals) > 6 else None,
            }
        return cls(
            name=step.name,
            action=step.action,
            why=step.why,
            dtype=step.dtype,
            shape=step.shape,
            num_fused=step.num_fused,
            figures={name: float(value) for name, value in figures.items()} if figures else NONE,
            differs=step.differs,
            measured=measured,
            protected=protected,
            options=step.method.options() if step.method is not None and totals is not None else None,
            digest=digest,
            **norms,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the record as plain values, the realised sparsity included."""
        plain = {"shape": list(self.shape), "figures": dict(self.figures), "realised_sparsity": self.realised_sparsity}
        return {**{name: getattr(self, name) for name in FIELDS}, **plain}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TensorRecord:
        """Return the record that `as_json` wrote.

        Raises:
            CheckpointError: It is none.
        """
        return checked(cls, content)


FIELDS = tuple(found.name for found in fields(TensorRecord))
