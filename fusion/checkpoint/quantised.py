"""Codes that nothing here decodes: which tensors are such, and the refusal to take them for plain weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ..dtypes import DTYPES
from ..errors import CheckpointError
from ..file_kinds import CONFIG
from .source import Source
from .tensor_info import TensorInfo

# What a format calls the scales beside its codes, in place of the last part of the codes' name or behind all of it.
BESIDE = (
    *("scales", "qzeros", "SCB", "scale", "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_absmax"),
    *("weight_scales", "codebooks", "centroids", "tables", "zero", "bitmask", "_weight_scale", "meta"),
)
BEHIND = (
    *("_scale", "_scales", "_scale_inv", ".absmax", "._scale"),
    *(".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4"),
)
PLAIN = ("BOOL", "I64", "U64")  # integers that models count with; no format packs into them
KNOWN = {  # by the scales' last part, where the configuration does not say it
    "qzeros": "GPTQ or AWQ",
    "SCB": "bitsandbytes 8-bit",
    "absmax": "bitsandbytes 4-bit",
    "weight_scale_inv": "block-scaled FP8",
    "codebooks": "AQLM",
    "centroids": "VPTQ",
}
NAMED = ("weight_packed", "qweight")  # which no plain weight is called
WORDS = "U32"  # in which MLX packs codes, beside the `biases` of its groups


def codes_in(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Yield the name of each tensor of codes, and of what says so: a tensor that scales it, or `config.json`."""
    said = isinstance((config or {}).get("quantization_config"), Mapping)
    for name, info in tensors.items():
        if DTYPES[info.stored].fusible or info.stored in PLAIN:
            continue
        stem = name.rpartition(".")[0]
        beside = [f"{stem}.{scale}" for scale in BESIDE]
        behind = [name.removesuffix("._data") + scale for scale in BEHIND]
        blocks = [name.removesuffix("_blocks") + "_scales"] if name.endswith("_blocks") else []
        if info.stored == WORDS:
            beside.append(f"{stem}.biases")
        found = next((scale for scale in (*blocks, *behind, *beside) if scale in tensors and scale != name), None)
        if found is None and name.rpartition(".")[2] in NAMED:
            found = name
        if found is not None or (said and DTYPES[info.stored].bits <= 8):
            yield name, found or CONFIG


def refuse_codes(model: Source, names: Collection[str] | None = None) -> None:
    """Raise CheckpointError where a model, or one of the tensors named, holds codes that nothing decodes.

    Taken for plain weights, the scales alone would be fused, or come from another model than the codes do.
    """
    for codes, scales in codes_in(model.tensors, model.config):
        if names is None or codes in names:
            method = (model.config or {}).get("quantization_config")
            kind = method.get("quant_method") if isinstance(method, Mapping) else None
            known = kind or KNOWN.get(scales.rpartition(".")[2], "quantised")
            told = f"by `{CONFIG}`" if scales == CONFIG else f"scaled by `{scales}`"
            if scales == codes:
                told = "by their name, and no scales that fit"
            raise CheckpointError(
                f"`{codes}` in `{model.ref}` holds {known} codes, {told}, which sculpt cannot decode",
                hint="take the unquantised checkpoint, or save one with the library that wrote this",
            )
