"""The one door to `from_pretrained`: from the disk alone, and without a model's own code unless that is trusted.

What lies in a model's folder was written by others. Left to itself transformers asks on stdin whether to run its code,
fetches attention kernels that a config names, and builds as many layers as a config says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError, first_line
from .loading_rules import with_own_kernels

if TYPE_CHECKING:
    from .source import Source

MIN_LAYERS = 256  # are built without a look at the weights: that many cost nothing


def load_pretrained(
    cls: Any,
    folder: Path | None,
    what: str,
    *,
    trust_remote_code: bool = False,
    hint: str | None = None,
    **options: Any,
) -> Any:
    """Return what a class of transformers, or an Auto class, loads from a model's folder.

    Args:
        what: Is loaded, as sentences call it: `tokenizer`, `config`.
        trust_remote_code: Whether code in the folder may run. Never left to transformers, which would ask.

    Raises:
        ModelError: There is none, or it needs code that is not trusted.
    """
    try:
        return cls.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # transformers raises anything on missing or damaged files
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise needs_code(folder) from error
        message = f"transformers cannot load the {what} of `{folder}`: {first_line(error)}"
        raise ModelError(message, hint=hint) from error


def needs_code(folder: Path | None) -> ModelError:
    """Return the refusal to run what lies in a folder."""
    return ModelError(
        f"`{folder}` needs the code that lies in it to run",
        hint="read that code, then allow it with `trust_remote_code`, if the command has that option",
        options=["trust_remote_code"],
    )


def load_config(source: Source, *, trust_remote_code: bool = False) -> Any:
    """Return the config of a model that is going to be built.

    Raises:
        ModelError: It cannot be read, or counts layers that the weights do not have.
    """
    folder = source.folder or source.path.parent
    content = source.config or {} if source.folder is not None else {}
    found = read_config(folder, content, len(source.tensors), trust_remote_code=trust_remote_code)
    if source.base is not None and source.config not in (None, source.base.config):
        found = _of_this_machine(type(found).from_dict(content))  # with the vocabulary that an adapter brings
    return found


def read_config(folder: Path, content: Mapping[str, Any], num_tensors: int, *, trust_remote_code: bool = False) -> Any:
    """Return the config that a folder holds, for a model of this many tensors.

    How attention is computed, here and now, is not the config's business: a name there would have a kernel fetched, or
    bar the model from a machine that lacks one. transformers picks what the machine has.

    Raises:
        ModelError: It cannot be read, or counts layers that the weights do not have.
    """
    from transformers import AutoConfig

    _refuse_hollow(folder, content, num_tensors)
    return _of_this_machine(load_pretrained(AutoConfig, folder, "config", trust_remote_code=trust_remote_code))


def _of_this_machine(config: Any) -> Any:
    parts = (config, *(getattr(config, key, None) for key in config.sub_configs))
    for part in (found for found in parts if found is not None):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config  # codes are decoded or refused before: what is given has plain weights
    return with_own_kernels(config)


def is_encoder_decoder(config: Any) -> bool:
    """Return whether prompt and completion go to different halves of a model, or of the language model within it."""
    only_decodes = getattr(config, "use_decoder_only_language_model", None)  # InstructBLIP and its kin
    return bool(config.is_encoder_decoder) if only_decodes is None else not only_decodes


def _refuse_hollow(folder: Path, config: Mapping[str, Any], num_tensors: int) -> None:
    """Refuse a config with more layers than there are tensors, before hours and memory go into building them."""
    for key, value in _numbers(config):
        if "layer" in key and value > max(MIN_LAYERS, num_tensors):
            raise ModelError(f"the config of `{folder}` says `{key}: {value}`; its weights are {num_tensors} tensors")


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield key, value
