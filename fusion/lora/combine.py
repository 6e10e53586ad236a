"""Several adapters into one: `Σ_k w_k·δ_k`, exactly with the sum of their ranks, or the best of a given rank.

PEFT's `linear` adds the As and the Bs apart, so that the cross terms B_1·A_2 come in; here nothing but δ = s·B·A is
added. Concatenated, `[w_1·s_1·B_1, w_2·s_2·B_2]·[A_1; A_2]` is that sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from ..checkpoint import Asked, Source, open_checkpoint
from ..checkpoint.output.guard import ADAPTER, refuse_output
from ..checkpoint.output.processes import Processes
from ..checkpoint.output.workspace import told
from ..errors import CheckpointError, MethodError
from ..table import Table
from .modules import Factors, Module, OpenAdapter, Place
from .truncated_svd import Truncated, of_product
from .write import config_of, fill_adapter, tensors_of


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What became of one module.

    Attributes:
        rank: In the output.
        rank_before: Of the exact sum.
        norm: ‖δ‖_F.
        error: ‖δ − δ_out‖_F / ‖δ‖_F.
    """

    name: str
    rank: int
    rank_before: int
    norm: float
    error: float


@dataclass(frozen=True, kw_only=True)
class AdapterReport:
    """One adapter that was written, layer by layer."""

    output: Path
    layers: tuple[LayerReport, ...]

    def __fspath__(self) -> str:
        return str(self.output)

    def __repr__(self) -> str:
        return f"AdapterReport({self.output}: {len(self.layers)} layers, relative error {self.error:.2%})"

    def _repr_html_(self) -> str:
        return self.table().html()

    def table(self) -> Table:
        """Return a row a layer."""
        rows = [
            [layer.name, str(layer.rank), str(layer.rank_before), f"{layer.norm:.4g}", f"{layer.error:.2%}"]
            for layer in self.layers
        ]
        return Table(columns=["layer", "rank", "of", "‖δ‖", "error"], rows=rows, title=repr(self))

    @property
    def error(self) -> float:
        """Relative error over all layers."""
        squares = sum(layer.norm**2 for layer in self.layers)
        missed = sum((layer.error * layer.norm) ** 2 for layer in self.layers)
        return (missed / squares) ** 0.5 if squares else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"output": str(self.output), **self.recorded()}

    def recorded(self) -> dict[str, Any]:
        """Return what the adapter's record has: nothing of where it lies, so that it is the same anywhere."""
        return {"error": self.error, "layers": [asdict(layer) for layer in self.layers]}


def combine_adapters(
    base: Asked,
    adapters: Sequence[Path | str],
    *,
    output: Path | str,
    weights: Sequence[float],
    rank: int | None = None,
    energy: float | None = None,
    command: str | None = None,
    overwrite: bool = False,
) -> AdapterReport:
    """Write `Σ_k w_k·δ_k` as one adapter of the same base.

    Args:
        rank: The most that a module may have, or None.
        energy: Which part of ‖δ‖_F² a module must keep at least, in (0, 1], or None. Without both the sum is exact.
        command: The command line, for the adapter's record.

    Raises:
        SculptError: The adapters do not fit the base or each other, or an option is out of range.
    """
    check_rank(rank, energy)
    output = Path(output)
    if len(weights) != len(adapters):
        raise MethodError(f"`weights` has {len(weights)} values for {len(adapters)} adapters", options=["weights"])
    refuse_output(output, [base, *adapters], ADAPTER, overwrite=overwrite)
    opened = open_checkpoint(base)
    found = [OpenAdapter.of(Path(path), opened) for path in adapters]
    processes = Processes()
    places = [*dict.fromkeys(place for adapter in found for place in adapter.modules)]
    with processes.meet(output, made_by="lora-merge") as folder:
        if processes.workspace is not None:
            processes.workspace.empty()
        tensors: dict[str, np.ndarray] = {}
        own = []
        for place in places[processes.rank :: processes.count]:
            module = _agreed(place, found)
            exact = concatenate(
                [
                    adapter.factors(place, weight)
                    for adapter, weight in zip(found, weights, strict=True)
                    if place in adapter.modules
                ]
            )
            factors, norm, error = shorten(exact, rank, energy)
            tensors |= tensors_of(module, factors)
            own.append(
                asdict(LayerReport(name=module.name, rank=factors.rank, rank_before=exact.rank, norm=norm, error=error))
            )
        if not processes.is_first:
            with told(folder):
                save_file({name: np.ascontiguousarray(a) for name, a in tensors.items()}, _part(folder, processes.rank))
        every = processes.gather("layers", own)
        layers = [LayerReport(**every[k % processes.count][k // processes.count]) for k in range(len(places))]
        report = AdapterReport(output=output, layers=tuple(layers))
        for adapter in found:
            adapter.file.refuse_changed()

        def fill(payload: Path) -> None:
            for other in range(1, processes.count):
                tensors.update(load_file(_part(folder, other)))
            tensors.update(_whole(opened, found, weights))
            ranks = {_agreed(place, found): layer.rank for place, layer in zip(places, layers, strict=True)}
            record = {
                "made by": "sculpt lora-merge",
                "command": command,
                "base": {"path": opened.ref.name, "fingerprint": opened.fingerprint},
                "adapters": [
                    {"path": a.file.ref.name, "weight": weight, "digest": a.file.digest()}
                    for a, weight in zip(found, weights, strict=True)
                ],
                **report.recorded(),
            }
            fill_adapter(payload, folder.name, tensors, _config(found, ranks), record)

        processes.publish(fill, ADAPTER.may_replace if overwrite else None)
    return report


def _part(folder: Path, rank: int) -> Path:
    """Return the file in which a process has what it made of its share of the modules."""
    return folder / f"part-{rank}.safetensors"


def check_rank(rank: int | None, energy: float | None) -> None:
    """Raise MethodError where a rank or an energy makes no sense."""
    if rank is not None and rank < 1:
        raise MethodError(f"`rank` must be at least 1, got {rank}", options=["rank"])
    if energy is not None and not 0 < energy <= 1:
        raise MethodError(f"`energy` must be above 0 and at most 1, got {energy:g}", options=["energy"])


def _agreed(place: Place, adapters: Sequence[OpenAdapter]) -> Module:
    """Return the module under the name that the first adapter gives it."""
    modules = [adapter.modules[place][0] for adapter in adapters if place in adapter.modules]
    if len({(module.key, module.pattern, module.by_name) for module in modules}) > 1 and modules[0].by_name:
        raise CheckpointError(
            f"the adapters name `{modules[0].name}` in different ways, so they cannot become one adapter",
            hint="merge them into the base, not into an adapter",
        )
    return modules[0]


def concatenate(parts: Sequence[Factors]) -> Factors:
    """Return the exact sum, with the sum of the ranks."""
    biases = [part.bias for part in parts]
    given = [bias for bias in biases if bias is not None]
    return Factors(
        a=np.concatenate([part.a for part in parts], axis=1),
        b=np.concatenate([part.b for part in parts], axis=1),
        bias=np.stack(given).sum(axis=0) if given else None,
    )


def shorten(exact: Factors, rank: int | None, energy: float | None) -> tuple[Factors, float, float]:
    """Return the best approximation of a rank or an energy, ‖δ‖_F, and the relative error; never forms B·A."""
    experts, inner = exact.a.shape[:2]
    pairs = [(exact.b[:, :, e].reshape(-1, inner), exact.a[e].reshape(inner, -1)) for e in range(experts)]
    found = [of_product(left, right, rank=rank or inner, energy=energy) for left, right in pairs]
    most = max(truncated.rank for truncated in found)
    squares = sum(truncated.squares for truncated in found)
    if rank is None and energy is None:
        return exact, squares**0.5, 0.0
    if any(truncated.rank < most for truncated in found):  # experts share one rank
        found = [of_product(left, right, rank=most) for left, right in pairs]
    error = 1 - sum(truncated.kept for truncated in found) / squares if squares else 0.0
    short = Factors(a=_stack(exact, found, "right"), b=_stack(exact, found, "left"), bias=exact.bias)
    return short, squares**0.5, max(0.0, error) ** 0.5


def _stack(exact: Factors, found: Sequence[Truncated], side: str) -> np.ndarray:
    if side == "right":
        return np.stack([t.right.reshape(t.rank, *exact.a.shape[2:]) for t in found])
    return np.stack([t.left.reshape(len(exact.b), t.rank, *exact.b.shape[3:]) for t in found], axis=2)


def _whole(base: Source, adapters: Sequence[OpenAdapter], weights: Sequence[float]) -> dict[str, np.ndarray]:
    """Return tensors that adapters hold whole, moved from the base by the weighted sum of their moves."""
    found = {}
    for tensor in dict.fromkeys(name for adapter in adapters for name in adapter.whole):
        holders = [(a, w) for a, w in zip(adapters, weights, strict=True) if tensor in a.whole]
        first = holders[0][0].file.read_own(holders[0][0].whole[tensor])
        if tensor not in base.tensors:
            if len(holders) > 1 or holders[0][1] != 1:
                raise CheckpointError(f"`{tensor}` is not in the base, so its changes cannot be added")
            found[holders[0][0].whole[tensor]] = first
            continue
        before = base.read(tensor).astype(np.float64).reshape(base.tensors[tensor].shape)
        if first.shape != before.shape:
            raise CheckpointError(
                f"`{tensor}` has {list(first.shape)} in `{holders[0][0].path}`, not {list(before.shape)}"
            )
        moved = sum(w * (a.file.read_own(a.whole[tensor]).astype(np.float64) - before) for a, w in holders)
        if np.any(moved):
            found[holders[0][0].whole[tensor]] = (before + moved).astype(np.float32)
    return found


def _config(adapters: Sequence[OpenAdapter], ranks: dict[Module, int]) -> dict[str, Any]:
    contents = [adapter.content for adapter in adapters]
    first = contents[0]
    saved = sorted({name for content in contents for name in content.get("modules_to_save") or ()})
    named = sorted({name for content in contents for name in content.get("target_parameters") or ()})
    kinds = {content.get("bias", "none") for content in contents} - {"none"}
    lora_bias = {bool(content.get("lora_bias")) for content in contents}
    if len(lora_bias) > 1:
        raise CheckpointError("some of the adapters have `lora_bias` and others not, so they cannot become one adapter")
    return config_of(
        ranks,
        bias=kinds.pop() if len(kinds) == 1 else "all" if kinds else "none",
        lora_bias=lora_bias.pop(),
        fan_in_fan_out=bool(first.get("fan_in_fan_out")),
        modules_to_save=saved or None,
        target_parameters=named or None,
        task_type=first.get("task_type"),
        base_model_name_or_path=first.get("base_model_name_or_path"),
        **({"revision": first["revision"]} if first.get("revision") else {}),
        auto_mapping=first.get("auto_mapping"),
    )
