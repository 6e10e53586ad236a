"""LoRAs in one file, without PEFT's configuration: kohya's, diffusers' in its three ways, and ComfyUI's.

    kohya       lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight, .lora_up.weight, .alpha
    diffusers   unet.down_blocks.0.….to_q.lora_A.weight, .lora_B.weight; text_encoder.….lora_linear_layer.up
    of old      unet.….attn1.processor.to_q_lora.down.weight, .up.weight
    ComfyUI     diffusion_model.….lora_A.weight, or kohya's ends

Each is read as what PEFT would have saved: kohya's s is α/r of each module, where there is no α it is 1. Module names
are those of the base once dots and underscores are the same and what names the component is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..safetensors_file import read_header
from ..source import Source
from ..tensor_file import TensorFile
from .config import AdapterConfig
from .single_file import diffusers_names

FILE = "pytorch_lora_weights.safetensors"  # what diffusers saves
SAID = "lora_adapter_metadata"  # of its header: what PEFT's configuration says, a component's name before each key
FACTOR = re.compile(
    r"(?P<module>.+?)(\.(lora_linear_layer|lora)\.|_lora\.|\.lora_)(?P<kind>down|up|A|B)(\.default)?\.weight"
)
ALPHA = re.compile(r"(?P<module>.+)\.alpha")
KINDS = {"down": "lora_A", "A": "lora_A", "up": "lora_B", "B": "lora_B"}
# What comes before a module's name, by the component that it is in.
BEFORE = {
    "unet": ("lora_unet_", "lora_transformer_", "unet_", "transformer_", "diffusion_model_", "model_diffusion_model_"),
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoder_"),
    "text_encoder_2": ("lora_te2_", "text_encoder_2_"),
    "text_encoder_3": ("lora_te3_", "text_encoder_3_"),
}
BEFORE["transformer"] = BEFORE["unet"]
# Where a single file of weights has a component.
IN_FILE = {
    "model.diffusion_model.": "unet",
    "cond_stage_model.transformer.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
}
TEXT_MODEL = "text_model."  # some versions of transformers have it in the names of a text encoder


def loose_lora(path: Path) -> Path | None:
    """Return the file of a LoRA that has no configuration beside it; None of anything else."""
    file = path / FILE if path.is_dir() else path
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    if path.is_dir():
        return file
    try:
        names = read_header(file)[0]
    except CheckpointError:
        return None  # told where it is opened
    return file if any(FACTOR.fullmatch(name) for name in names) else None


@dataclass
class _Pair:
    """What a file has of one module: names of tensors, by what they are."""

    tensors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Loose:
    """A LoRA as PEFT would have it.

    Attributes:
        names: Name in the file, by the name that PEFT would have saved.
    """

    config: AdapterConfig
    names: Mapping[str, str]


def read_loose(opened: TensorFile, base: Source) -> Loose:
    """Return what a file holds, for a base.

    Raises:
        CheckpointError: A tensor is none of a LoRA's, a factor lacks the other, or a module is not in the base.
    """
    pairs: dict[str, _Pair] = {}
    for name in opened.tensors:
        matched, alpha = FACTOR.fullmatch(name), ALPHA.fullmatch(name)
        found = matched or alpha
        if found is None:
            raise CheckpointError(
                f"`{name}` in `{opened.file}` is none of what a LoRA adds to a weight by two factors",
                hint="LoHa, LoKr, DoRA's `dora_scale` and whole differences are not read here: merge them with the "
                "tools that made them",
            )
        kind = KINDS[matched["kind"]] if matched is not None else "alpha"
        own = pairs.setdefault(found["module"], _Pair()).tensors
        if kind in own:
            raise CheckpointError(f"`{name}` and `{own[kind]}` in `{opened.file}` are both the `{kind}` of one module")
        own[kind] = name
    modules = _modules(base)
    said = _said(opened)
    names: dict[str, str] = {}
    exact: dict[str, tuple[int, float]] = {}
    for key, pair in pairs.items():
        if not {"lora_A", "lora_B"} <= pair.tensors.keys():
            there = next(iter(pair.tensors.values()))
            raise CheckpointError(f"`{there}` in `{opened.file}` has no factor beside it: `{key}` lacks one of the two")
        module = modules.get(_flat(key))
        if module is None:
            raise CheckpointError(
                f"`{opened.file}` adapts `{key}`, which is not in the base `{base.ref}`",
                hint="is this the model that the LoRA was trained on? One of a text encoder needs the whole pipeline",
            )
        if module in exact:
            raise CheckpointError(f"`{opened.file}` adapts `{module}` twice, the second time as `{key}`")
        rank = opened.tensors[pair.tensors["lora_A"]].shape[0]
        if "alpha" in pair.tensors:
            (value,) = opened.read(pair.tensors["alpha"])
            exact[module] = rank, float(value)
        else:
            exact[module] = rank, _alpha(said, key, rank)
        names |= {f"{module}.{kind}.weight": pair.tensors[kind] for kind in ("lora_A", "lora_B")}
    return Loose(config=AdapterConfig(rank=1, alpha=1.0, exact=exact), names=names)


def _flat(key: str) -> str:
    """Return a module's name with dots and underscores the same, without what old versions of diffusers put in."""
    if ".processor." in key:
        key = key.replace(".processor.", ".") + (".0" if key.endswith(".to_out") else "")
    return key.replace(".", "_")


def _modules(base: Source) -> dict[str, str]:
    """Return the base's modules by all names that a LoRA may have for them; none that two modules would have."""
    found: dict[str, str] = {}
    twice: set[str] = set()
    for name in base.tensors:
        module = name.removesuffix(".weight")
        if module == name:
            continue
        for called in dict.fromkeys(_called(module, in_folders="" not in base.file_names)):
            if found.setdefault(called, module) != module:
                twice.add(called)
    return {called: module for called, module in found.items() if called not in twice}


def _called(module: str, *, in_folders: bool) -> Iterator[str]:
    """Yield what a LoRA may call a module, flattened."""
    component, own = "", module
    if in_folders:
        component, _, own = module.partition("/")
    for prefix, part in () if in_folders else IN_FILE.items():
        if module.startswith(prefix):
            component, own = part, module.removeprefix(prefix)
    before = BEFORE.get(component, (f"{component}_", f"lora_{component}_") if component else ())
    if not component:  # a component alone: whichever it is
        before = ("", *dict.fromkeys(prefix for known in BEFORE.values() for prefix in known))
    every = [own, *(diffusers_names(own) if component == "unet" else ())]
    if component.startswith("text_encoder") or not component:
        every += [own.removeprefix(TEXT_MODEL), TEXT_MODEL + own]
    for name in every:
        for prefix in before:
            yield _flat(prefix + name)


def _said(opened: TensorFile) -> Mapping[str, Any]:
    """Return what diffusers writes of PEFT's configuration into the header.

    Raises:
        CheckpointError: It is malformed, or says that the LoRA is of a kind that is not two factors alone.
    """
    try:
        said = json.loads(opened.metadata.get(SAID, "{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"`{SAID}` in the header of `{opened.file}` is no JSON: {error}") from error
    if not isinstance(said, dict):
        raise CheckpointError(f"`{SAID}` in the header of `{opened.file}` is not a JSON object")
    for key in said:
        if key.rpartition(".")[2] in ("use_dora", "use_rslora") and said[key]:
            raise CheckpointError(f"`{opened.file}` says `{key}`, which is not read from one file")
        if key.rpartition(".")[2] == "alpha_pattern" and said[key]:
            raise CheckpointError(f"`{opened.file}` has an α of its own for some modules (`{key}`), which is not read")
    return said


def _alpha(said: Mapping[str, Any], key: str, rank: int) -> float:
    """Return the α of a module, which is its rank where nothing says another."""
    component = key.partition(".")[0]
    found = said.get(f"{component}.lora_alpha", said.get("lora_alpha"))
    return float(found) if isinstance(found, (int, float)) else float(rank)
