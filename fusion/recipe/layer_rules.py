"""A configuration for layers that were moved: what it says of a layer by its number is said of where the layer now is.

What transformers itself derives from a number, and takes as a list too, becomes a list: the kinds of attention, of
positions, of experts. Rules that it takes as numbers alone are made anew where other numbers say it; where none do the
rule stays, and the check that the output loads refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoint import Source
from ..checkpoint.pretrained import load_config
from ..errors import ModelError
from ..names import config_values
from ..plan.layers import COUNT_KEYS, PREDICTOR_KEYS

# Lists of the numbers of layers; other lists have an entry a layer.
NUMBERS = (
    "mlp_only_layers",
    "moe_layers",
    "cross_attention_layers",
    "attn_layer_indices",
    "local_layer_ids",
    "rope_scaling_layers",
)
PERIODS = ("attn_layer", "expert_layer")  # each with a `_period` and an `_offset`


def config_of_layers(model: Source, taken: Sequence[int]) -> dict[str, Any]:
    """Return a model's configuration for the layers of it that were taken, in their order."""
    config = model.config or {}
    counts = {n for key in COUNT_KEYS for n in config_values(config, key)}
    in_place = len(taken) in counts and list(taken) == list(range(len(taken)))
    return with_layers(config if in_place else spelled_out(model), taken)


def spelled_out(model: Source) -> dict[str, Any]:
    """Return a model's configuration with the lists over its layers that transformers derives where it has none."""
    config = model.config or {}
    try:
        derived = load_config(model).to_dict()
    except (ModelError, ImportError):
        return dict(config)
    return _with_lists(config, derived)


def _with_lists(config: Mapping[str, Any], derived: Mapping[str, Any]) -> dict[str, Any]:
    counts = _counts({**derived, **config})
    found = {
        key: _with_lists(value, derived[key])
        if isinstance(value, Mapping) and isinstance(derived.get(key), Mapping)
        else value
        for key, value in config.items()
    }
    for key, value in derived.items():
        if found.get(key) is None and isinstance(value, list) and (len(value) in counts or (key in NUMBERS and value)):
            found[key] = value
    return found


def _counts(config: Mapping[str, Any]) -> set[int]:
    return {config[key] for key in COUNT_KEYS if isinstance(config.get(key), int)}


def with_layers(config: Mapping[str, Any], taken: Sequence[int]) -> dict[str, Any]:
    """Return a configuration for the layers that were taken, in their order, from the model that it describes."""
    counts = _counts(config)
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key in COUNT_KEYS and isinstance(value, int):
            changed[key] = len(taken)
        elif isinstance(value, Mapping):
            changed[key] = with_layers(value, taken)
        elif key in NUMBERS and isinstance(value, list):
            changed[key] = [place for place, layer in enumerate(taken) if layer in value]
        elif isinstance(value, list) and len(value) in counts and len(value) > max(taken):
            changed[key] = [value[layer] for layer in taken]
        elif key in PREDICTOR_KEYS and counts:
            changed[key] = 0
        else:
            changed[key] = value
    return changed | _counted_rules(config, taken)


def _counted_rules(config: Mapping[str, Any], taken: Sequence[int]) -> dict[str, Any]:
    """Return the rules of a configuration that are numbers, for layers that were moved."""
    found: dict[str, Any] = {}
    dense = config.get("first_k_dense_replace")
    if isinstance(dense, int):
        found["first_k_dense_replace"] = next((k for k, layer in enumerate(taken) if layer >= dense), len(taken))
    step = config.get("decoder_sparse_step")
    if isinstance(step, int) and step > 1 and isinstance(config.get("mlp_only_layers"), list):
        alone = [k for k, n in enumerate(taken) if n in config["mlp_only_layers"] or (n + 1) % step]
        found |= {"decoder_sparse_step": 1, "mlp_only_layers": alone}
    for rule in PERIODS:
        period, offset = config.get(f"{rule}_period"), config.get(f"{rule}_offset")
        if isinstance(period, int) and isinstance(offset, int):
            wanted = [layer % period == offset for layer in taken]
            tried = ((p, o) for p in range(1, len(taken) + 2) for o in range(p))
            fits = ((p, o) for p, o in tried if [k % p == o for k in range(len(taken))] == wanted)
            found |= dict(zip((f"{rule}_period", f"{rule}_offset"), next(fits, (period, offset)), strict=True))
    return found
