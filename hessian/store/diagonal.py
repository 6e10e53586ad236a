"""The statistics of a calibration: tensor name to curvature, with where they came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import final

from ...fusion.arithmetic.curvature import Curvature
from ...fusion.checkpoint.output.workspace import write_file
from ...fusion.errors import CurvatureError
from . import file_format
from .gram_store import GramStore, by_block, with_summed_grams
from .provenance import Provenance

Counts = tuple[tuple[str, int], ...]


def add_curvature(first: Curvature, second: Curvature) -> Curvature:
    """Return the curvature of both sets of inputs: Σx² adds up.

    Terms are matched by shape; a term that only one side has is kept, so tensors that are used in more than one
    way keep one term for each. Σ x·xᵀ is kept where both have it.
    """
    terms = list(first.terms)
    for term in second.terms:
        for k, own in enumerate(terms):
            if own.shape == term.shape:
                terms[k] = own + term
                break
        else:
            terms.append(term)
    gram = None if first.gram is None or second.gram is None else first.gram + second.gram
    tokens = first.num_tokens + second.num_tokens
    return Curvature(terms=tuple(terms), num_tokens=tokens, gram=gram, part_tokens=_add_parts(first, second))


def _add_parts(first: Curvature, second: Curvature) -> tuple[int, ...] | None:
    if first.part_tokens is None or second.part_tokens is None:
        return None
    return tuple(a + b for a, b in zip(first.part_tokens, second.part_tokens, strict=True))


@final
@dataclass(frozen=True, eq=False)
class DiagonalHessian(Mapping[str, Curvature]):
    """Curvature of each tensor of a tuned checkpoint, keyed by the names in its files.

    Attributes:
        curvatures: The statistics themselves; the object is a mapping over them.
        provenance: Where they came from.
        why_missing: For each tensor of the checkpoint without statistics, the reason.
    """

    curvatures: Mapping[str, Curvature]
    provenance: Provenance
    why_missing: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("curvatures", "why_missing"):
            content = getattr(self, name)
            object.__setattr__(self, name, MappingProxyType({key: content[key] for key in sorted(content)}))

    def __getitem__(self, name: str) -> Curvature:
        return self.curvatures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.curvatures)

    def __len__(self) -> int:
        return len(self.curvatures)

    def __repr__(self) -> str:
        return (
            f"DiagonalHessian({len(self)} tensors of {self.provenance.model}, "
            f"{self.provenance.num_samples} samples, {self.provenance.num_tokens} tokens)"
        )

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, whole or not at all; the same statistics give the same bytes.

        Earlier statistics of that name are replaced.

        Raises:
            OutputError: The file cannot be written, or something else has the name.
        """
        write_file(Path(path), self.write, made_by="save", may_replace=file_format.STATISTICS.may_replace)

    def write(self, path: Path) -> None:
        """Write the file at once to the name that is given, for those who rename it when it is whole."""
        file_format.write(path, self.curvatures, self.provenance, self.why_missing)

    @classmethod
    def load(cls, path: Path | str) -> DiagonalHessian:
        """Return the statistics of a file; arrays are views of the mapped file. Needs no torch.

        Raises:
            CurvatureError: The file is missing, malformed, or holds what cannot be a sum of squares.
        """
        curvatures, provenance, why_missing = file_format.read(Path(path))
        return cls(curvatures=curvatures, provenance=provenance, why_missing=why_missing)

    def merge(self, others: Iterable[DiagonalHessian], *, gram_file: Path | None = None) -> DiagonalHessian:
        """Return the statistics of all samples together: Σx², Σx·xᵀ and counts add up.

        Σx·xᵀ is kept of tensors that have it wherever they were seen.

        Args:
            gram_file: Where the sums of Σx·xᵀ are put, and mapped from; None holds them in memory.

        Raises:
            CurvatureError: They belong to different models, or were gathered differently.
        """
        sides = [self, *others]
        merged = _without_grams(self)
        for other in sides[1:]:
            merged = _merge_two(merged, _without_grams(other))
        store = None if gram_file is None else GramStore(gram_file)
        curvatures: dict[str, Curvature] = {}
        for names in by_block(merged):
            grams = [{name: side[name].gram for name in names if name in side} for side in sides]
            block = with_summed_grams({name: merged[name] for name in names}, grams)
            curvatures |= block if store is None else store.keep(block)
        return dataclasses.replace(merged, curvatures=curvatures)


def _without_grams(hessian: DiagonalHessian) -> DiagonalHessian:
    found = {name: dataclasses.replace(curvature, gram=None) for name, curvature in hessian.items()}
    return dataclasses.replace(hessian, curvatures=found)


def _joined(first: str, second: str) -> str:
    return first if first == second else f"{first} + {second}"


def _added(first: Counts, second: Counts) -> Counts:
    total = dict(first)
    for kind, count in second:
        total[kind] = total.get(kind, 0) + count
    return tuple(sorted(total.items()))


def _merge_two(first: DiagonalHessian, second: DiagonalHessian) -> DiagonalHessian:
    ours, theirs = first.provenance, second.provenance
    if ours.model_fingerprint != theirs.model_fingerprint:
        raise CurvatureError(
            f"statistics of `{ours.model}` and `{theirs.model}` cannot be merged: they are different models"
        )
    curvatures = dict(first.curvatures)
    for name, curvature in second.items():
        own = curvatures.get(name)
        if (
            own
            and {t.shape for t in own.terms} != {t.shape for t in curvature.terms}
            and not _same_rank(own, curvature)
        ):
            raise CurvatureError(f"statistics cannot be merged: `{name}` has another shape in each")
        curvatures[name] = curvature if own is None else add_curvature(own, curvature)
    provenance = dataclasses.replace(
        ours,
        data=_joined(ours.data, theirs.data),
        data_digest=_joined(ours.data_digest, theirs.data_digest),
        num_samples=ours.num_samples + theirs.num_samples,
        num_tokens=ours.num_tokens + theirs.num_tokens,
        max_length=max(ours.max_length, theirs.max_length),
        dtype=_joined(ours.dtype, theirs.dtype),
        kinds=_added(ours.kinds, theirs.kinds),
        kind_samples=_added(ours.kind_samples, theirs.kind_samples),
    )
    missing = {**first.why_missing, **second.why_missing}
    return DiagonalHessian(
        curvatures=curvatures,
        provenance=provenance,
        why_missing={name: why for name, why in missing.items() if name not in curvatures},
    )


def _same_rank(first: Curvature, second: Curvature) -> bool:
    return len({term.ndim for term in (*first.terms, *second.terms)}) <= 1
