"""A transformers model without weights: the class that the config names, with real buffers and nothing else.

It is built the way `from_pretrained` builds it: on the meta device, untied; then what the checkpoint does not hold is
initialised, buffers such as rotary frequencies above all, and weights are tied.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..fusion.checkpoint import Source
from ..fusion.checkpoint.loading_rules import named_class
from ..fusion.checkpoint.pretrained import load_config, needs_code
from ..fusion.checkpoint.quantised import refuse_codes
from ..fusion.errors import ModelError, SculptError, first_line
from ..fusion.file_kinds import CONFIG
from . import privates
from .names import NameMap, map_names

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# Tried in this order where the config does not name its class.
AUTO_CLASSES = (
    "AutoModelForImageTextToText",
    "AutoModelForSeq2SeqLM",
    "AutoModelForCausalLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForImageClassification",
    "AutoModel",
)


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A model to be filled block by block.

    Attributes:
        model: In eval mode. Parameters that the checkpoint holds are on the meta device, others are initialised.
        names: How the checkpoint's tensors make them.
        folder: Of configuration, tokenizer and processor.
    """

    model: Any
    names: NameMap
    folder: Path


def model_class(config: Any, auto_class: str | None) -> Any:
    """Return the class that a configuration names, or that the Auto classes make of it.

    Raises:
        ModelError: transformers has none.
    """
    import transformers

    if auto_class is None and (named := named_class({"architectures": config.architectures})):
        return named
    for name in (auto_class,) if auto_class else AUTO_CLASSES:
        auto = getattr(transformers, name, None)
        if auto is None:
            raise ModelError(f"transformers has no class `{name}`")
        if isinstance(auto, type) and issubclass(auto, transformers.PreTrainedModel):
            return auto
        found = privates.class_of(auto, config)
        if found is not None:
            return found
    wanted = auto_class or "a model class"
    raise ModelError(f"transformers has no `{wanted}` for a model of type `{config.model_type}`")


def _remote_class(folder: Path, config: Any, auto_class: str | None) -> Any:
    names = (auto_class,) if auto_class else AUTO_CLASSES
    name = next((name for name in names if name in config.auto_map), None)
    if name is None:
        raise ModelError(f"the code in `{folder}` has no `{auto_class or 'model class'}`")
    return privates.remote_class(config.auto_map[name], folder)


def build(
    checkpoint: Source,
    *,
    auto_class: str | None,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    trust_remote_code: bool,
) -> Skeleton:
    """Return the model of a checkpoint, without the weights that the checkpoint holds.

    Raises:
        ModelError: transformers cannot build it, or the weights do not fit.
    """
    folder = checkpoint.folder or checkpoint.path.parent
    content = checkpoint.config if checkpoint.folder else None
    if content is None and not (folder / CONFIG).is_file():
        raise ModelError(
            f"`{folder}` holds no `config.json`, so the model cannot be run",
            hint="copy `config.json` and the tokenizer of its base there, if it is a model of transformers",
        )
    refuse_codes(checkpoint)
    # The folder's code runs only where transformers has no class of its own for the model.
    remote = bool((content or {}).get("auto_map")) and named_class(content) is None
    if remote and not trust_remote_code:
        raise needs_code(folder)
    config = load_config(checkpoint, trust_remote_code=remote)
    cls = _remote_class(folder, config, auto_class) if remote else model_class(config, auto_class)
    try:
        model = on_meta(cls, config, dtype)
        names = map_names(model, checkpoint.tensors)
        _empty(model, {target for assembly in names.assemblies for target in assembly.targets})
        _fill_the_rest(model, names, device, seed)
    except SculptError:
        raise
    except Exception as error:
        raise ModelError(f"transformers cannot build `{cls.__name__}` from `{folder}`: {first_line(error)}") from error
    return Skeleton(model=model.eval(), names=names, folder=folder)


def on_meta(cls: Any, config: Any, dtype: torch.dtype) -> Any:
    """Return a model without weights, not yet tied."""
    for entry in (config, *(getattr(config, key, None) for key in config.sub_configs)):
        if entry is not None:
            entry.dtype = dtype
            entry.use_cache = False  # keys and values of every layer would be held between blocks
    return privates.on_meta(cls, config, dtype)


def _empty(model: Any, held: Collection[str]) -> None:
    """Put what the checkpoint holds on the meta device, where `torch.Tensor(n)` and its like made it elsewhere."""
    import torch

    emptied: dict[int, torch.Tensor] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if name in held and not tensor.is_meta:
            value = torch.empty_like(tensor, device="meta")
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            emptied[id(tensor)] = torch.nn.Parameter(value, tensor.requires_grad) if is_parameter else value
    for name, tensor in state.items():  # whoever shares it goes on sharing it
        if id(tensor) in emptied:
            privates.set_tensor(model, name, emptied[id(tensor)])


def _fill_the_rest(model: Any, names: NameMap, device: torch.device, seed: int) -> None:
    """Initialise buffers and what the checkpoint lacks as `from_pretrained` does, and tie weights."""
    import torch

    state = model.state_dict(keep_vars=True)
    made_up = set(names.missing) - set(privates.tied_names(model))
    _check_missing(model, made_up)
    for name in sorted(made_up):
        value = torch.zeros_like(state[name], device=device)
        is_parameter = isinstance(state[name], torch.nn.Parameter)
        privates.set_tensor(model, name, torch.nn.Parameter(value, requires_grad=False) if is_parameter else value)
    for name, buffer in list(model.named_non_persistent_buffers()):
        privates.set_tensor(model, name, torch.zeros_like(buffer, device=device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        privates.initialise(model, names.missing)


def _check_missing(model: Any, missing: set[str]) -> None:
    """Refuse a model whose body lacks weights; a head that the checkpoint lacks is initialised, with a note."""
    ignored = [re.compile(pattern) for pattern in privates.may_be_missing(model)]
    missing = {name for name in missing if not any(pattern.search(name) for pattern in ignored)}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    lacking = sorted(missing & parameters)
    body = f"{model.base_model_prefix}."
    has_head = any(not name.startswith(body) for name in parameters)
    in_body = [name for name in lacking if (name.startswith(body) or not has_head) and "pooler" not in name]
    if in_body:
        more = f" and {len(in_body) - 1} more" if len(in_body) > 1 else ""
        raise ModelError(
            f"the checkpoint lacks `{in_body[0]}`{more}, which `{type(model).__name__}` needs",
            hint="`auto_class` runs it as another class",
            options=["auto_class"],
        )
    if lacking:
        logger.warning("%s is not in the checkpoint and gets random values, so it has no statistics", lacking)
