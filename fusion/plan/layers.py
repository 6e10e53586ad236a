"""Which layer a tensor belongs to, by its name and the model's configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..names import OUTPUT_MODULES, config_values, is_number

COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
PREDICTOR_KEYS = ("num_nextn_predict_layers", "num_mtp_layers")


@dataclass(frozen=True, kw_only=True)
class LayerTensor:
    """`prefix`, the number of the layer, and `rest` are the name of a tensor in a layer."""

    prefix: str
    layer: int
    rest: str

    def name(self, layer: int) -> str:
        """Return the name that the tensor has in another layer."""
        return f"{self.prefix}{layer}{self.rest}"


def place_of(name: str) -> LayerTensor | None:
    """Return the layer of a tensor, by the first number in its name; None for one outside all layers."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if is_number(part) and i:
            rest = "." + ".".join(parts[i + 1 :]) if parts[i + 1 :] else ""
            return LayerTensor(prefix=".".join(parts[:i]) + ".", layer=int(part), rest=rest)
    return None


def stacks(names: Iterable[str]) -> dict[str, int]:
    """Return the stacks of layers, by prefix, with the number of layers of each."""
    found: dict[str, set[int]] = {}
    for name in names:
        place = place_of(name)
        if place is not None:
            found.setdefault(place.prefix, set()).add(place.layer)
    return {prefix: len(layers) for prefix, layers in found.items() if layers == set(range(len(layers)))}


def stack_of(names: Iterable[str], config: Mapping[str, Any] | None) -> tuple[str, int] | None:
    """Return the one stack that slices are taken of, (prefix, number of layers), or None where that is ambiguous.

    It is the stack whose number of layers the configuration confirms; without one, the only stack there is.
    """
    # What predicts further tokens lies behind the layers, under their names, and is none of them.
    more = max((n for key in PREDICTOR_KEYS for n in config_values(config, key)), default=0)
    counts = set().union(*(config_values(config, key) for key in COUNT_KEYS))
    found = {prefix: n - more if more and n - more in counts else n for prefix, n in stacks(names).items()}
    confirmed = {prefix: n for prefix, n in found.items() if n in counts}
    for candidates in (confirmed, found):
        if len(candidates) == 1:
            return next(iter(candidates.items()))
    return None


def fraction_through(name: str, counts: Mapping[str, int]) -> float:
    """Return how far through its stack a tensor's layer is, in [0, 1]; 0 outside all stacks, 1 in a stack of one."""
    place = place_of(name)
    if place is None or place.prefix not in counts:
        return 0.0
    last = counts[place.prefix] - 1
    return place.layer / last if last > 0 else 1.0


def comes_after(name: str) -> bool:
    """Return whether a tensor outside the layers comes after them: the output's vocabulary, or a last norm."""
    module = name.split(".")[-2:-1]
    return bool(module) and (module[0] in OUTPUT_MODULES or "norm" in module[0] or module[0] in ("ln_f", "score"))
