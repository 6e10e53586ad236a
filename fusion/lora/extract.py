"""The best adapter of a given rank for a fine-tune: each δ = W_sft − W_pre as B·A, streamed, with its error.

What is no matrix (norms, class tokens) PEFT cannot adapt; it is saved whole, or left out where that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from ..arithmetic.group import Group, Region
from ..arithmetic.matrices import Matrices
from ..arithmetic.passes import Finding, Reduction
from ..arithmetic.random import tensor_key
from ..checkpoint import Source, TensorInfo, open_checkpoint
from ..checkpoint.output.guard import ADAPTER, refuse_output
from ..checkpoint.relaid import relaid
from ..device import all_cores
from ..errors import CheckpointError, MismatchError, NonFiniteError, Way
from ..methods import Method
from ..names import align, is_constant
from ..plan.options import Selection
from ..progress import Progress, silent
from ..run.backend import NumpyBackend
from ..run.look import look, pair_plan
from .combine import AdapterReport, LayerReport, check_rank
from .layers import Layer, layers_of, refuse_tied
from .modules import Factors, Module
from .truncated_svd import Truncated, of_matrix
from .write import config_of, entries_of_base, tensors_of, write_adapter

BLOCK_ELEMENTS = 1 << 20  # of δ at once
Rest = Literal["save", "drop"]
WHOLE = "whole"  # what is found of a changed tensor that is no matrix


@dataclass(frozen=True, kw_only=True)
class Extraction(Method):
    """Find the best factors of each delta.

    Attributes:
        layers: By the base's names.
        where: Both checkpoints, for errors.
    """

    layers: Mapping[str, Layer]
    where: str
    rank: int | None
    energy: float | None

    name: ClassVar[str] = "extraction"
    title: ClassVar[str] = "the extraction of an adapter"
    source: ClassVar[str] = "arXiv:0909.4061"
    bytes_per_element: ClassVar[int] = 48  # of a matrix that is decomposed whole; most are projected, a block at once

    def region(self, group: Group) -> Region:  # noqa: ARG002
        """Return `matrix`."""
        return "matrix"

    def matrix(self, matrices: Matrices) -> Finding:
        """Return the factors and how well they do; `WHOLE` of what is no matrix; None of what has not changed."""
        group, layer = matrices.group, self.layers[matrices.group.name]
        if not any(delta.any() for _, delta in _deltas(matrices, 1)):
            return Finding(value=None)
        if layer.kind == "whole":
            return Finding(value=WHOLE)
        rows, columns = group.shape[0], prod(group.shape[1:])

        def blocks() -> Iterator[tuple[slice, np.ndarray]]:
            for start, delta in _deltas(matrices, columns):
                if not np.isfinite(delta).all():
                    raise NonFiniteError(group.name, self.where, int((~np.isfinite(delta)).sum()))
                block = delta.reshape(-1, columns)
                yield slice(start // columns, start // columns + len(block)), block

        seed = tensor_key(0, group.name).low
        found = of_matrix((rows, columns), blocks, rank=self.rank, energy=self.energy, seed=seed)
        return Finding(value=_factors(layer, group.shape, found))

    def reduce(self, num_elements: int) -> Reduction:
        """Have nothing to ask: what is found of the matrix is all."""
        raise NotImplementedError


def _deltas(matrices: Matrices, row: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield δ in float32, in runs of whole rows, each with its first element."""
    total = prod(matrices.group.shape)
    step = max(1, BLOCK_ELEMENTS // row) * row
    for start in range(0, total, step):
        base, tuned = (a.astype(np.float32, copy=False) for a in matrices.flat(start, min(start + step, total)))
        yield start, tuned - base


def extract_adapter(
    base: Path,
    tuned: Path,
    *,
    output: Path,
    rank: int | None = None,
    energy: float | None = None,
    selection: Selection | None = None,
    rest: Rest = "save",
    command: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> AdapterReport:
    """Write the adapter of a fine-tune.

    Args:
        rank: The most that a module may have; 16 where neither is given.
        energy: Which part of ‖δ‖_F² each module must keep, in (0, 1]: its rank is the least that does.
        selection: Which tensors take part; the others' changes are left out.
        rest: What is no matrix: `save` it whole, or `drop` its change.
        command: The command line, for the adapter's record.

    Raises:
        SculptError: The two do not fit, or a change cannot be held by an adapter.
    """
    check_rank(rank, energy)
    output = Path(output)
    rank = 16 if rank is None and energy is None else rank
    selection = selection or Selection()
    refuse_output(output, [base, tuned], ADAPTER, overwrite=overwrite)
    opened = open_checkpoint(base)
    names_base = entries_of_base(opened.ref)
    after = relaid(open_checkpoint(tuned, opened), opened)
    pairs = _pairs(opened, after, selection)
    layers = layers_of(opened)
    method = Extraction(layers=layers, where=f"`{base}` or `{tuned}`", rank=rank, energy=energy)
    backend = NumpyBackend(threads=all_cores(), tile_elements=BLOCK_ELEMENTS)
    found = look(pair_plan(opened, after, pairs, method), backend, progress=progress)
    tensors: dict[str, np.ndarray] = {}
    whole: list[tuple[Layer, TensorInfo, TensorInfo]] = []
    ranks: dict[Module, int] = {}
    reports = []
    for pair in pairs:
        layer, value = layers[pair[0].name], found.get(pair[0].name)
        if value is None:
            continue
        refuse_tied(opened, pair[0].name)
        if value == WHOLE:
            whole.append((layer, *pair))
        else:
            factors, report = value
            tensors |= tensors_of(layer.module, factors)
            ranks[layer.module] = factors.rank
            reports.append(report)
    if not ranks and not whole:
        raise CheckpointError(f"no selected tensor of `{tuned}` differs from `{base}`")
    saved, has_biases = _save(opened, after, whole, ranks, tensors) if rest == "save" else ([], False)
    result = AdapterReport(output=output, layers=tuple(reports))
    config = config_of(
        ranks,
        modules_to_save=saved or None,
        bias="all" if has_biases else "none",
        **names_base,
        fan_in_fan_out=any(layers[info.name].kind == "transposed" for info, _ in pairs),
    )
    record = {
        "made by": "sculpt lora-extract",
        "command": command,
        "base": {"path": opened.ref.name, "fingerprint": opened.fingerprint},
        "tuned": after.ref.name,
        "saved whole": sorted(info.name for _, info, _ in whole) if rest == "save" else [],
        "left out": sorted(info.name for _, info, _ in whole) if rest == "drop" else [],
        **result.recorded(),
    }
    opened.refuse_changed()
    after.refuse_changed()
    write_adapter(output, tensors, config, record, overwrite=overwrite)
    return result


def _pairs(base: Source, tuned: Source, selection: Selection) -> list[tuple[TensorInfo, TensorInfo]]:
    """Return the selected tensors, in file order, but for buffers that a model computes for itself.

    Raises:
        MismatchError: One is missing on a side, or has another shape.
    """
    shapes = [{name: info.shape for name, info in side.tensors.items()} for side in (base, tuned)]
    matched = align(*shapes).pairs
    pairs = []
    for name, info in base.tensors.items():
        if not selection.covers(name) or not info.kind.fusible or is_constant(name, info.shape):
            continue
        if name not in matched:
            raise MismatchError(name, f"`{name}` is in the base and missing in `{tuned.ref}`")
        if tuned.tensors[matched[name]].shape != info.shape:
            raise MismatchError(
                name,
                f"`{name}` is {list(info.shape)} in the base and {list(tuned.tensors[matched[name]].shape)} "
                f"in `{tuned.ref}`",
                hint="an adapter cannot change a shape",
                ways=[Way(option="exclude", value=name, effect="leaves the tensor out")],
            )
        pairs.append((info, tuned.tensors[matched[name]]))
    used = set(matched.values())
    for name, info in tuned.tensors.items():
        if name not in used and selection.covers(name) and not is_constant(name, info.shape):
            raise MismatchError(name, f"`{name}` is in `{tuned.ref}` and missing in the base")
    return pairs


def _factors(layer: Layer, shape: tuple[int, ...], found: Truncated) -> tuple[Factors, LayerReport]:
    """Return the factors of one tensor's δ as PEFT has them, and how well they do."""
    rows, columns = shape[0], prod(shape[1:])
    # δ = left·right in the tensor's own layout; PEFT's B·A is its transpose where that is (d_in, d_out) or (V, d).
    turned = layer.kind in ("transposed", "embedding")
    a, b = (found.left.T, found.right.T) if turned else (found.right, found.left)
    if layer.kind == "convolution":
        a, b = a.reshape(found.rank, *shape[1:]), b.reshape(rows, found.rank, *(1 for _ in shape[2:]))
    report = LayerReport(
        name=layer.module.name,
        rank=found.rank,
        rank_before=min(rows, columns),
        norm=found.squares**0.5,
        error=found.error,
    )
    return Factors(a=a[None], b=b.reshape(len(b), found.rank, 1, *b.shape[2:])), report


def _save(
    base: Source,
    tuned: Source,
    whole: Sequence[tuple[Layer, TensorInfo, TensorInfo]],
    adapted: dict[Module, int],
    tensors: dict[str, np.ndarray],
) -> tuple[list[str], bool]:
    """Add tensors that are saved whole; return the modules that PEFT is to save, and whether there are biases.

    A module is saved with all of its tensors, as PEFT loads it with all.
    """
    names = {module.name for module in adapted}
    saved: set[str] = set()
    has_biases = False
    for layer, info, other in whole:
        module, _, leaf = layer.parameter.rpartition(".")
        if leaf == "bias" and (module in names or not _is_alone(base, info.name)):
            key = f"base_model.model.{module}.{'base_layer.' if module in names else ''}bias"
            tensors[key] = _value(tuned, other.name)
            has_biases = True
            continue
        if not module or module in names:
            raise CheckpointError(
                f"fine-tuning changed `{info.name}`, which an adapter cannot store",
                ways=[
                    Way(option="exclude", value=info.name, effect="leaves its change out"),
                    Way(option="others", value="drop", effect="leaves out all such"),
                ],
            )
        saved.add(module)
        stem, tuned_stem = info.name.rpartition(".")[0], other.name.rpartition(".")[0]
        for name in base.tensors:
            if name.rpartition(".")[0] == stem:
                part = name.rpartition(".")[2]
                tensors[f"base_model.model.{module}.{part}"] = _value(tuned, f"{tuned_stem}.{part}")
    return sorted(saved), has_biases


def _is_alone(base: Source, name: str) -> bool:
    """Return whether the other tensors of a bias's module are no matrices, as a layer norm's are not."""
    weight = base.tensors.get(f"{name.rpartition('.')[0]}.weight")
    return weight is None or len(weight.shape) == 1


def _value(tuned: Source, name: str) -> np.ndarray:
    return tuned.read(name).astype(np.float32).reshape(tuned.tensors[name].shape)
