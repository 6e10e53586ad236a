"""What transformers makes of a GGUF file: which parameters its tensors are, and how llama.cpp stored each.

transformers reads GGUF in two ways: for most architectures by a class that processes arrays, for newer ones by
conversions such as those of `loading_rules`. Names come from its own functions; what its classes do to an array is
said here as a `GgufLayout`, since a tensor is read in pieces. The functions are no public interface: this module is
their one user.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ..loading_rules import named_class
from .blocks import decode
from .file import GgufFile
from .header import GgufTensor
from .layout import GgufLayout

# Architectures that transformers takes, and reads wrongly or not at all, with what to do.
WRONG = {"gpt-oss": "its safetensors files hold the same MXFP4 codes, and are read as they are"}
ROPE = re.compile(r"(blk\.\d+\.)?rope_(freqs|factors_long|factors_short)\.weight")  # numbers, told by the config
# The processors of arrays whose work is known: by class, what becomes of which tensors.
PLAIN = ("TensorProcessor", "T5TensorProcessor")
KNOWN = (
    *PLAIN,
    *("LlamaTensorProcessor", "Qwen2MoeTensorProcessor", "MiniMaxM2TensorProcessor", "BloomTensorProcessor"),
    *("GPT2TensorProcessor", "MambaTensorProcessor", "NemotronTensorProcessor", "Gemma2TensorProcessor"),
    "Lfm2TensorProcessor",
)
FLIPPED = ("attn_qkv.weight", "ffn_down.weight", "ffn_up.weight", "attn_output.weight")  # of GPT-2, which has Conv1D


def class_name(config: Any) -> str:
    """Return the class of a model whose configuration names none: the one that predicts tokens."""
    from transformers.models.auto import modeling_auto

    named = getattr(config, "architectures", None)
    if named:
        return named[0]
    kind = config.model_type
    for mapping in ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"):
        found = getattr(modeling_auto, mapping).get(kind)
        if found is not None:
            return found
    raise CheckpointError(f"transformers has no language model of the kind `{kind}`")


def refuse_unknown(architecture: str) -> None:
    """Refuse an architecture that transformers does not read.

    Raises:
        CheckpointError: It is one.
    """
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    told = {"qwen2moe", "qwen3moe", "minimax-m2", "t5encoder", *GGUF_SUPPORTED_ARCHITECTURES, *_converted()}
    if architecture in WRONG or architecture not in told:
        raise CheckpointError(
            f"GGUF files of the architecture `{architecture}` are not read: transformers {version('transformers')} "
            f"{'does it wrongly' if architecture in WRONG else 'does not know their tensors'}",
            hint=WRONG.get(architecture, "name the checkpoint that it was converted from"),
        )


def layouts(architecture: str, config: Any, tensors: Mapping[str, GgufTensor]) -> tuple[list[GgufLayout], list[str]]:
    """Return the parameters that tensors make, and the tensors that make none and are told.

    Raises:
        CheckpointError: A tensor or a parameter is left over, or has another shape than the model says.
    """
    import torch

    cls = named_class({"architectures": [class_name(config)]})
    if cls is None:
        raise CheckpointError(f"transformers has no class `{class_name(config)}`")
    with torch.device("meta"):
        model = cls(config)
    made = list((_by_conversions if architecture in _converted() else _by_processor)(architecture, model, tensors))
    state = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    parts = {part for layout in made for part in layout.parts}
    left = [name for name in tensors if name not in parts and not ROPE.fullmatch(name)]
    dropped = [name for name in left if _is_dropped(name, config)]
    if len(dropped) < len(left):
        name = next(name for name in left if name not in dropped)
        raise CheckpointError(f"`{name}` of the GGUF file is no parameter of {cls.__name__}")
    given = {layout.name for layout in made}
    missing = sorted(set(state) - set(tied) - given)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"no tensor of the GGUF file is `{missing[0]}`{more} of {cls.__name__}")
    wide = {*(model._keep_in_fp32_modules_strict or ()), *(model._keep_in_fp32_modules or ())}
    for layout in made:
        if layout.shape != state.get(layout.name):
            there = list(state[layout.name]) if layout.name in state else "none"
            raise CheckpointError(
                f"`{layout.parts[0]}` makes `{layout.name}` {list(layout.shape)}, but {cls.__name__} has {there}"
            )
    return [replace(found, wide=bool(wide & set(found.name.split(".")))) for found in made], dropped


def _is_dropped(name: str, config: Any) -> bool:
    """Return whether a tensor is of the layers that predict several tokens at once, which transformers has not."""
    found = re.match(r"blk\.(\d+)\.", name)
    return found is not None and int(found[1]) >= config.num_hidden_layers


def floats(opened: GgufFile, name: str) -> np.ndarray:
    """Return a tensor of a file as float32."""
    tensor = opened.header.tensors[name]
    blocks = opened.blocks(tensor)
    out = np.empty((len(blocks), tensor.kind.elements), np.float32)
    decode(tensor.kind, np.ascontiguousarray(blocks), out)
    return out.reshape(-1)


def dtype_of(tensors: Mapping[str, GgufTensor]) -> str:
    """Return torch's name of the dtype that a file's tensors were, as far as it tells: of codes it is bfloat16."""
    kinds = {tensor.kind.name for tensor in tensors.values()}
    if kinds == {"F32"}:
        return "float32"
    return "float16" if kinds <= {"F16", "F32"} else "bfloat16"


def _by_processor(architecture: str, model: Any, tensors: Mapping[str, GgufTensor]) -> Iterator[GgufLayout]:
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config={})
    kind = type(processor).__name__
    if kind not in KNOWN:
        raise CheckpointError(
            f"transformers {version('transformers')} changes the tensors of `{architecture}` in a way that sculpt does "
            f"not know ({kind})"
        )
    names = _names(architecture, model, processor)
    stacked: dict[str, list[str]] = {}
    for name in tensors:
        target = names.get(name) or (names.get(name.removesuffix(".weight")) if "_exps." in name else None)
        if kind == "GPT2TensorProcessor" and name == "output.weight":
            target = "lm_head.weight"
        if target is not None:
            stacked.setdefault(target, []).append(name)
    for target, parts in stacked.items():
        yield _processed(kind, model.config, target, tuple(sorted(parts, key=lambda name: "_up_" in name)), tensors)


def _names(architecture: str, model: Any, processor: Any) -> dict[str, str]:
    """Return the parameter of each tensor's name: `get_gguf_hf_weights_map` of transformers, 400 times as fast.

    The `gguf` package knows names of parameters with and without what wraps them in a class, so that all their ends are
    tried, the longest first.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    number = next((number for number, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
    if number is None:
        raise CheckpointError(
            f"the `gguf` package that is installed does not know `{architecture}`", hint="a newer `gguf` package may"
        )
    known = get_tensor_name_map(number, model.config.num_hidden_layers)
    found: dict[str, str] = {}
    state = [(name, processor.preprocess_name(name).split(".")) for name in model.state_dict()]
    for depth in range(max((len(parts) for _, parts in state), default=0)):
        level: dict[str, str] = {}
        for name, parts in state:
            end = parts[depth:]
            stem, suffix = (end[:-1], f".{end[-1]}") if end[-1:] in (["weight"], ["bias"]) else (end, "")
            if not stem:
                continue
            own = known.get_name(".".join(stem))
            if own is not None:
                level[own + suffix] = name
            else:
                others: dict[str, str] = {}
                processor.perform_fallback_tensor_mapping(others, suffix, "", ".".join(end))
                level.update((other, name) for other in others)
        found = level | found
    return found


def _processed(
    kind: str, config: Any, target: str, parts: tuple[str, ...], tensors: Mapping[str, GgufTensor]
) -> GgufLayout:
    """Return what a processor does to the array of a tensor."""
    name, shape = parts[0], _joined([tensors[part].shape for part in parts])
    found = GgufLayout(name=target, shape=shape, parts=parts)
    if kind == "LlamaTensorProcessor" and (".attn_q." in name or ".attn_k." in name):
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        return replace(found, rows=_order(name, shape[0], (heads, shape[0] // heads // 2, 2), (0, 2, 1)))
    if kind == "BloomTensorProcessor" and "attn_qkv" in name:
        heads = config.n_head
        return replace(found, rows=_order(name, shape[0], (3, heads, shape[0] // heads // 3), (1, 0, 2)))
    if kind == "GPT2TensorProcessor" and name.endswith(FLIPPED):
        return replace(found, shape=shape[::-1], transposed=True)
    if kind == "Qwen2MoeTensorProcessor" and "ffn_gate_inp_shexp" in name:
        return replace(found, shape=(1, *shape))
    if "ssm_conv1d.weight" in name or "shortconv.conv.weight" in name:
        return replace(found, shape=(shape[0], 1, *shape[1:]))
    if kind == "MambaTensorProcessor" and "ssm_a" in name:
        return replace(found, step="log of the negated")
    if kind in ("NemotronTensorProcessor", "Gemma2TensorProcessor") and "norm.weight" in name:
        return replace(found, step="minus one")
    return found


def _order(name: str, count: int, shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """Return which stored row each row is, where the rows were seen as `shape` and its axes moved."""
    if np.prod(shape) != count:
        raise CheckpointError(f"`{name}` has {count} rows, which are no whole number of heads")
    return tuple(np.arange(count).reshape(shape).transpose(axes).reshape(-1).tolist())


def _joined(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of tensors that follow one another in each expert."""
    first = shapes[0]
    if len(shapes) == 1:
        return first
    if any(len(shape) != 3 or (shape[0], shape[2]) != (first[0], first[2]) for shape in shapes):
        raise CheckpointError(f"experts of the shapes {[list(shape) for shape in shapes]} do not fit one another")
    return first[0], sum(shape[1] for shape in shapes), first[2]


def _converted() -> Mapping[str, Any]:
    """Return the architectures that transformers reads by conversions, of a version that has such."""
    try:
        from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
    except ImportError:
        return {}
    return GGUF_ARCHS


def _by_conversions(architecture: str, model: Any, tensors: Mapping[str, GgufTensor]) -> Iterator[GgufLayout]:
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = _converted()[architecture](model.config)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    state = model.state_dict()
    stacked: dict[str, tuple[Any, dict[str, str]]] = {}
    for name in tensors:
        target, pattern = rename_source_key(name, renamings, converters, "", state)
        if target in state:
            converter = None if pattern is None else by_pattern[pattern]
            stacked.setdefault(target, (converter, {}))[1][pattern or ""] = name
    for target, (converter, parts) in stacked.items():
        order = converter.source_patterns if converter is not None else [""]
        found = tuple(parts[pattern] for pattern in order if pattern in parts)
        layout = GgufLayout(name=target, shape=_joined([tensors[part].shape for part in found]), parts=found)
        for operation in converter.operations if converter is not None else ():
            layout = _operated(layout, operation)
        yield layout


def _operated(layout: GgufLayout, operation: Any) -> GgufLayout:
    """Return a layout after one of transformers' operations."""
    kind, shape = type(operation).__name__, layout.shape
    if kind == "SubtractOne" and operation.offset == 1:
        return replace(layout, step="minus one")
    if kind == "LogNegate":
        return replace(layout, step="log of the negated")
    if kind == "Unsqueeze":
        if operation.expected_ndim is not None and len(shape) >= operation.expected_ndim:
            return layout
        return replace(layout, shape=(*shape[: operation.dim], 1, *shape[operation.dim :]))
    if kind == "ConcatenateRows" and operation.dim == 1:
        return layout
    if kind in ("TiledToGroupedRows", "TiledToGroupedInputs"):
        order = operation.permutation.tolist()
        if kind == "TiledToGroupedInputs":
            return replace(layout, columns=tuple(order))
        offset = operation.offset
        return replace(layout, rows=(*range(offset), *(offset + row for row in order)))
    raise CheckpointError(
        f"transformers {version('transformers')} makes `{layout.name}` by an operation that is not known here ({kind})"
    )
