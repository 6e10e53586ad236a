"""The best adapter of a given rank for a fine-tune: each δ = W_sft − W_pre as B·A, streamed, with its error.

What is no matrix (norms, class tokens) PEFT cannot adapt; it is saved whole, or left out where that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..arithmetic.random import tensor_key
from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import CheckpointError, MismatchError, NonFiniteError
from ..names import align
from ..plan.step import Selection
from ..progress import Progress, silent
from .combine import AdapterReport, LayerReport, check_rank
from .layers import Layer, layers_of, refuse_tied
from .modules import Factors, Module
from .truncated_svd import of_matrix
from .write import config_of, refuse_folder, tensors_of, write_adapter

BLOCK_ELEMENTS = 1 << 20  # of δ at once
Rest = Literal["save", "drop"]


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A tensor of both sides."""

    base: Checkpoint
    tuned: Checkpoint
    name: str
    tuned_name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.tensors[self.name].shape

    def delta(self, start: int, stop: int) -> np.ndarray:
        """Return elements of δ, float32."""
        before = self.base.raw(self.name, start, stop).astype(np.float32)
        return self.tuned.raw(self.tuned_name, start, stop).astype(np.float32) - before

    def spans(self, row: int) -> Iterator[tuple[int, int]]:
        """Cut the tensor into runs of whole rows."""
        total = self.base.tensors[self.name].num_elements
        step = max(1, BLOCK_ELEMENTS // row) * row
        for start in range(0, total, step):
            yield start, min(start + step, total)

    def changed(self) -> bool:
        """Return whether any element differs."""
        return any(self.delta(*span).any() for span in self.spans(1))

    def release(self) -> None:
        self.base.release(self.name)
        self.tuned.release(self.tuned_name)


def extract_adapter(
    base: Path,
    tuned: Path,
    *,
    output: Path,
    rank: int | None = None,
    energy: float | None = None,
    selection: Selection | None = None,
    rest: Rest = "save",
    overwrite: bool = False,
    progress: Progress = silent,
) -> AdapterReport:
    """Write the adapter of a fine-tune.

    Args:
        rank: The most that a module may have; 16 where neither is given.
        energy: Which part of ‖δ‖_F² each module must keep, in (0, 1]: its rank is the least that does.
        selection: Which tensors take part; the others' changes are left out.
        rest: What is no matrix: `save` it whole, or `drop` its change.

    Raises:
        SculptError: The two do not fit, or a change cannot be held by an adapter.
    """
    check_rank(rank, energy)
    rank = 16 if rank is None and energy is None else rank
    selection = selection or Selection()
    refuse_folder(output, [base, tuned], overwrite=overwrite)
    opened = open_checkpoint(base)
    pairs = _pairs(opened, open_checkpoint(tuned, opened), selection)
    layers = layers_of(opened)
    total, done = sum(opened.tensors[pair.name].nbytes for pair in pairs), 0
    tensors: dict[str, np.ndarray] = {}
    whole: list[tuple[Layer, _Pair]] = []
    ranks: dict[Module, int] = {}
    reports = []
    for pair in pairs:
        layer = layers[pair.name]
        if pair.changed():
            refuse_tied(opened, pair.name)
            if layer.kind == "whole":
                whole.append((layer, pair))
            else:
                factors, report = _factors(layer, pair, rank, energy)
                tensors |= tensors_of(layer.module, factors)
                ranks[layer.module] = factors.rank
                reports.append(report)
        pair.release()
        done += opened.tensors[pair.name].nbytes
        progress(done, total, pair.name)
    if not ranks and not whole:
        raise CheckpointError(f"nothing of `{tuned}` that is selected differs from `{base}`")
    saved, has_biases = _save(whole, ranks, tensors) if rest == "save" else ([], False)
    result = AdapterReport(output=output, layers=tuple(reports))
    config = config_of(
        ranks,
        modules_to_save=saved or None,
        bias="all" if has_biases else "none",
        base_model_name_or_path=str(base),
        fan_in_fan_out=any(layers[pair.name].kind == "transposed" for pair in pairs),
    )
    record = {
        "made by": "sculpt lora-extract",
        "base": {"path": str(base), "fingerprint": opened.fingerprint},
        "tuned": str(tuned),
        "saved whole": sorted(pair.name for _, pair in whole) if rest == "save" else [],
        "left out": sorted(pair.name for _, pair in whole) if rest == "drop" else [],
        **result.as_json(),
    }
    write_adapter(output, tensors, config, record)
    return result


def _pairs(base: Checkpoint, tuned: Checkpoint, selection: Selection) -> Sequence[_Pair]:
    """Return the selected tensors, in file order.

    Raises:
        MismatchError: One is missing on a side, or has another shape.
    """
    shapes = [{name: info.shape for name, info in side.tensors.items()} for side in (base, tuned)]
    matched = align(*shapes).pairs
    pairs = []
    for name, info in base.tensors.items():
        if not selection.covers(name) or not info.stored.fusible:
            continue
        if name not in matched:
            raise MismatchError(name, f"`{name}` is in the base and missing in `{tuned.path}`")
        if tuned.tensors[matched[name]].shape != info.shape:
            raise MismatchError(
                name,
                f"`{name}` is {list(info.shape)} in the base and {list(tuned.tensors[matched[name]].shape)} "
                f"in `{tuned.path}`",
                hint="an adapter cannot change a shape; `--exclude` leaves the tensor out",
            )
        pairs.append(_Pair(base=base, tuned=tuned, name=name, tuned_name=matched[name]))
    for name in tuned.tensors:
        if name not in set(matched.values()) and selection.covers(name):
            raise MismatchError(name, f"`{name}` is in `{tuned.path}` and missing in the base")
    return pairs


def _factors(layer: Layer, pair: _Pair, rank: int | None, energy: float | None) -> tuple[Factors, LayerReport]:
    """Return the factors of one tensor's δ, and how well they do."""
    rows, columns = pair.shape[0], int(np.prod(pair.shape[1:]))

    def blocks() -> Iterator[tuple[slice, np.ndarray]]:
        for start, stop in pair.spans(columns):
            block = pair.delta(start, stop)
            if not np.isfinite(block).all():
                raise NonFiniteError(
                    pair.name, f"`{pair.base.path}` or `{pair.tuned.path}`", int((~np.isfinite(block)).sum())
                )
            yield slice(start // columns, stop // columns), block.reshape(-1, columns)

    seed = tensor_key(0, pair.name).low
    found = of_matrix((rows, columns), blocks, rank=rank, energy=energy, seed=seed)
    # δ = left·right in the tensor's own layout; PEFT's B·A is its transpose where that is (d_in, d_out) or (V, d).
    turned = layer.kind in ("transposed", "embedding")
    a, b = (found.left.T, found.right.T) if turned else (found.right, found.left)
    if layer.kind == "convolution":
        kernel = pair.shape[2:]
        a, b = a.reshape(found.rank, *pair.shape[1:]), b.reshape(rows, found.rank, *(1 for _ in kernel))
    report = LayerReport(
        name=layer.module.name,
        rank=found.rank,
        rank_before=min(rows, columns),
        norm=found.squares**0.5,
        error=found.error,
    )
    return Factors(a=a[None], b=b.reshape(len(b), found.rank, 1, *b.shape[2:])), report


def _save(
    whole: Sequence[tuple[Layer, _Pair]], adapted: dict[Module, int], tensors: dict[str, np.ndarray]
) -> tuple[list[str], bool]:
    """Add tensors that are saved whole; return the modules that PEFT is to save, and whether there are biases.

    A module is saved with all of its tensors, as PEFT loads it with all.
    """
    names = {module.name for module in adapted}
    saved: set[str] = set()
    has_biases = False
    for layer, pair in whole:
        module, _, leaf = layer.parameter.rpartition(".")
        if leaf == "bias" and (module in names or not _is_alone(pair)):
            key = f"base_model.model.{module}.{'base_layer.' if module in names else ''}bias"
            tensors[key] = _value(pair)
            has_biases = True
            continue
        if not module or module in names:
            raise CheckpointError(
                f"fine-tuning changed `{pair.name}`, which no adapter can hold",
                hint=f"`--exclude {pair.name}` or `--rest drop` leaves its change out",
            )
        saved.add(module)
        stem = pair.name.rpartition(".")[0]
        for other in pair.base.tensors:
            if other.rpartition(".")[0] == stem:
                twin = _Pair(
                    base=pair.base,
                    tuned=pair.tuned,
                    name=other,
                    tuned_name=pair.tuned_name.rpartition(".")[0] + "." + other.rpartition(".")[2],
                )
                tensors[f"base_model.model.{module}.{other.rpartition('.')[2]}"] = _value(twin)
    return sorted(saved), has_biases


def _is_alone(pair: _Pair) -> bool:
    """Return whether the other tensors of a bias's module are no matrices, as a layer norm's are not."""
    stem = pair.name.rpartition(".")[0]
    weight = pair.base.tensors.get(f"{stem}.weight")
    return weight is None or len(weight.shape) == 1


def _value(pair: _Pair) -> np.ndarray:
    return pair.tuned.raw(pair.tuned_name).astype(np.float32).reshape(pair.shape)
