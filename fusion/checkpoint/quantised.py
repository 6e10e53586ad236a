"""Which tensors of a checkpoint are codes that only mean something together with their scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dtypes import DTYPES
from .tensor_info import TensorInfo

# What a format calls the scales beside its codes, in place of the last part of the codes' name or behind all of it.
BESIDE = ("scales", "qzeros", "SCB", "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_absmax")
BEHIND = (
    "_scale",
    "_scales",
    "_scale_inv",
    ".absmax",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
)
PLAIN = ("BOOL", "I64", "U64")  # integers that models count with; no format packs into them
KNOWN = {  # by the scales' last part, where the configuration does not say it
    "qzeros": "GPTQ or AWQ",
    "SCB": "bitsandbytes 8-bit",
    "absmax": "bitsandbytes 4-bit",
    "weight_scale_inv": "block-scaled FP8",
}


def scales_of(tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, str]]:
    """Yield the name of each tensor that holds codes, and of one that scales it."""
    for name, info in tensors.items():
        if DTYPES[info.stored].fusible or info.stored in PLAIN:
            continue
        stem = name.rpartition(".")[0]
        beside = [f"{stem}.{scale}" for scale in BESIDE]
        behind = [name + scale for scale in BEHIND]
        blocks = [name.removesuffix("_blocks") + "_scales"] if name.endswith("_blocks") else []
        found = next((scale for scale in (*blocks, *behind, *beside) if scale in tensors and scale != name), None)
        if found is not None:
            yield name, found


def format_name(config: Mapping[str, Any] | None, scales: str) -> str:
    """Return what the format is called: by the configuration, or as its scales tell."""
    said = (config or {}).get("quantization_config")
    method = said.get("quant_method") if isinstance(said, Mapping) else None
    return str(method) if method else KNOWN.get(scales.rpartition(".")[2], "quantised")
