"""Which tensors of a checkpoint are codes that can be decoded, by their names and dtypes and those beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...dtypes import BY_TORCH_NAME, DTYPES
from ...names import config_values
from ..source import Source
from ..tensor_info import TensorInfo
from . import bitsandbytes, four_bits, integers
from .coded import Coded, StoredParts
from .scaled_bytes import BYTES, scaled_bytes

SAYS = ("quantization_config", "compression_config", "quantization")  # keys of `config.json`, the last MLX's
INVERSE, PLAIN = ("_scale_inv",), ("_scale",)
DEFAULT = "BF16"


def coded_tensors(own: Source, config: Mapping[str, Any] | None) -> dict[str, Coded]:
    """Return the tensors that are decoded, by the name of the parameter that each is.

    Raises:
        CheckpointError: Codes and scales do not fit.
    """
    parts = StoredParts(own, said_of(config), _dtype_of(own, config))
    found: dict[str, Coded] = {}
    for name, info in own.tensors.items():
        coded = _coded(parts, name, info)
        if coded is not None:
            found[coded.info.name] = coded
    return found


def said_of(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return what a configuration says of codes: its own entry, or that of a model within it."""
    for key in SAYS:
        for part in (config or {}, *(value for value in (config or {}).values() if isinstance(value, Mapping))):
            said = part.get(key)
            if said and isinstance(said, Mapping):
                return said
    return {}


def without_said(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration of plain weights."""
    return {
        key: without_said(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in SAYS
    }


def _dtype_of(own: Source, config: Mapping[str, Any] | None) -> str:
    """Return the float that a model is meant to have: the configuration's, else that of most plain tensors."""
    for key in ("dtype", "torch_dtype"):
        for said in config_values(config, key):
            kind = BY_TORCH_NAME.get(str(said).removeprefix("torch."))
            if kind is not None and kind.fusible:
                return kind.code
    sizes: dict[str, int] = {}
    for info in own.tensors.values():
        if DTYPES[info.stored].fusible and "scale" not in info.name.rpartition(".")[2]:
            sizes[info.stored] = sizes.get(info.stored, 0) + info.num_elements
    return max(sizes, key=lambda code: (sizes[code], code)) if sizes else DEFAULT


def _coded(parts: StoredParts, name: str, info: TensorInfo) -> Coded | None:
    """Return what a tensor decodes to, if it is one of codes, or describes one."""
    if bitsandbytes.STATE in name:
        return bitsandbytes.four_bit(parts, info)
    if DTYPES[info.stored].fusible:
        return None
    stem, _, leaf = name.rpartition(".")
    if leaf == "qweight" and info.stored == "I32":
        return _grouped(parts, stem, info)
    if leaf == "weight_packed":
        return _packed(parts, name.removesuffix("_packed"), info)
    if name.endswith("_blocks") and info.stored == "U8":
        scale = parts.info(name.removesuffix("_blocks") + "_scales")
        return four_bits.expert_blocks(parts, info, scale) if scale is not None else None
    if info.stored == "U32":
        scale, bias = parts.info(f"{stem}.scales"), parts.info(f"{stem}.biases")
        return integers.mlx(parts, info, scale, bias) if scale is not None and bias is not None else None
    if info.stored == "I8" and (scale := parts.info(f"{stem}.SCB")) is not None and len(info.shape) == 2:
        return bitsandbytes.eight_bit(parts, info, scale)
    if info.stored == "U8":
        return _bytes_of_pairs(parts, info)
    return _scaled(parts, stem, info) if info.stored in BYTES else None


def _grouped(parts: StoredParts, stem: str, info: TensorInfo) -> Coded | None:
    scale, zero = parts.info(f"{stem}.scales"), parts.info(f"{stem}.qzeros")
    if scale is None or zero is None or len(scale.shape) != 2 or len(info.shape) != 2 or len(zero.shape) != 2:
        return None
    if scale.shape[1] == info.shape[1]:
        return integers.gptq(parts, info, scale, zero)
    return integers.awq(parts, info, scale, zero) if parts.said.get("version", "gemm").lower() == "gemm" else None


def _packed(parts: StoredParts, parameter: str, info: TensorInfo) -> Coded | None:
    if info.stored == "I32":
        return integers.compressed(parts, info)
    scale = parts.info(f"{parameter}_scale")
    whole = parts.info(f"{parameter}_global_scale")
    if info.stored != "U8" or scale is None or scale.stored not in ("U8", "F8_E8M0", "F8_E4M3"):
        return None
    if (scale.stored == "F8_E4M3") != (whole is not None):  # NVFP4 has a scale of the whole, MXFP4 none
        return None
    return four_bits.packed_rows(
        parts,
        info,
        scale,
        parameter=parameter,
        dtype=DEFAULT,  # in which compressed-tensors unpacks FP4, whatever the model has
        whole=whole.name if whole is not None else None,
        divides=True,
    )


def _bytes_of_pairs(parts: StoredParts, info: TensorInfo) -> Coded | None:
    """Return a weight of two codes to a byte, as modelopt names them."""
    scale, whole = parts.info(f"{info.name}_scale"), parts.info(f"{info.name}_scale_2")
    if scale is None or not info.shape:
        return None
    if whole is not None and scale.stored == "F8_E4M3" and four_bits.groups_of(info, scale) == 16:
        return four_bits.packed_rows(parts, info, scale, parameter=info.name, dtype=parts.dtype, whole=whole.name)
    if whole is None and four_bits.is_exponents(scale) and four_bits.groups_of(info, scale) == four_bits.GROUP:
        return four_bits.packed_rows(parts, info, scale, parameter=info.name, dtype=parts.dtype)
    return None


def _scaled(parts: StoredParts, stem: str, info: TensorInfo) -> Coded | None:
    """Return a weight of one byte an element, or DeepSeek's experts of FP4 that pass for such."""
    inverse = next((scale for end in INVERSE if (scale := parts.info(info.name + end))), None)
    if inverse is None and info.name.endswith(".weight"):
        inverse = parts.info(f"{stem}.scale")
    if inverse is not None and info.stored == "I8":
        return four_bits.packed_rows(parts, info, inverse, parameter=info.name, dtype=parts.dtype)
    if inverse is not None:
        return scaled_bytes(parts, info, inverse, inverse=True)
    scale = next((scale for end in PLAIN if (scale := parts.info(info.name + end))), None)
    return scaled_bytes(parts, info, scale, inverse=False) if scale is not None else None
