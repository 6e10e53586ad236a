"""One-shot pruning of an adapter after training: the largest entries of each A and each B, the rest zero.

Figure 1 of LoRASculpt (Liang et al., CVPR 2025, arXiv:2503.16843): what a trained LoRA loses by it, and what the base's
abilities gain.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint.json_file import read_json
from ..checkpoint.output.guard import ADAPTER, refuse_output
from ..errors import MethodError
from ..file_kinds import ADAPTER_CONFIG
from ..methods.checks import fraction
from ..methods.tailor import largest
from .density import adapter_density
from .pairs import LoneAdapter
from .write import write_adapter


@dataclass(frozen=True, kw_only=True)
class PrunedAdapter:
    """What was pruned.

    Attributes:
        kept_squares: Part of Σ‖A‖² + Σ‖B‖² that is left.
        before, after: Density of all B·A.
    """

    output: Path
    density: float
    kept_squares: float
    before: float
    after: float
    layers: int

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "output": str(self.output)}


def check_density(density: float) -> None:
    """Raise MethodError for a density outside (0, 1]."""
    fraction("density", density)
    if density == 0:
        raise MethodError("a density of 0 leaves nothing of the adapter")


def num_kept(density: float, num_elements: int, name: str) -> int:
    """Return `floor(density·N)`, how many entries of a factor are kept.

    Raises:
        MethodError: It is none, so that the module would be switched off.
    """
    count = int(density * num_elements)
    if count == 0:
        raise MethodError(f"a density of {density:g} keeps none of the {num_elements} entries of `{name}`")
    return count


def prune_adapter(
    folder: Path | str, *, output: Path | str, density: float, command: str | None = None, overwrite: bool = False
) -> PrunedAdapter:
    """Write an adapter with the `floor(density·N)` largest entries of each factor; of equal ones the first.

    Magnitudes of DoRA, biases and modules that were saved whole stay as they are. `command` is the command line,
    for the adapter's record.

    Raises:
        SculptError: The folder is no adapter, the density is out of range, or the output may not be written.
    """
    check_density(density)
    folder, output = Path(folder), Path(output)
    adapter = LoneAdapter(folder)
    refuse_output(output, [folder], ADAPTER, overwrite=overwrite)
    tensors = {name: adapter.read(name) for name in adapter.names}
    before = adapter_density(folder)
    kept = whole = 0.0
    for name in (name for pair in adapter.pairs for name in (pair.a, pair.b)):
        factor = tensors[name]
        magnitude = np.abs(factor.astype(np.float32))
        chosen = largest(magnitude, num_kept(density, factor.size, name))
        tensors[name] = np.where(chosen, factor, np.zeros((), factor.dtype))
        squares = np.square(magnitude, dtype=np.float64)
        kept, whole = kept + float(squares[chosen].sum()), whole + float(squares.sum())
    record = {"made by": "sculpt lora-prune", "command": command, "adapter": folder.resolve().name, "density": density}
    config = read_json(adapter.folder / ADAPTER_CONFIG)
    adapter.refuse_changed()
    after = write_adapter(output, tensors, config, record, overwrite=overwrite, check=adapter_density)
    return PrunedAdapter(
        output=output,
        density=density,
        kept_squares=kept / whole if whole else 1.0,
        before=before.density,
        after=after.density,
        layers=len(after.layers),
    )
