"""Opening a model: the class of source that a path asks for."""

from __future__ import annotations

from importlib import import_module

from ..collector import without_collector
from ..errors import CheckpointError
from ..file_kinds import ADAPTER_CONFIG
from ..ref import Asked, ModelRef, find_model
from .adapter.config import AdapterConfig, is_adapter
from .adapter.loose import loose_lora
from .adapter.source import AdapterSource
from .coded.source import decoded
from .folder import Checkpoint, holds_weights
from .layouts.find import find_layout
from .lent import lent
from .source import Source


@without_collector()
def open_checkpoint(asked: Asked, base: Source | Asked | None = None) -> Source:
    """Return a checkpoint, a patch over its base, or an adapter over its base.

    Args:
        asked: A folder or file, or a model of the hub that the local cache holds; `base+patch.safetensors` is a patch.
        base: What an adapter was trained on, and itself no adapter of a base that is not given; None is the one
            that `adapter_config.json` names, where it is at hand. Of a whole checkpoint in a trainer's own layout,
            without a configuration, it is what lends one.

    Raises:
        CheckpointError: It cannot be read, or an adapter's base is nowhere.
    """
    ref = find_model(asked)
    if ref.base is not None or not needs_base(ref):
        found = _whole(ref, base)
        return found if base is None or not found.is_foreign or found.config is not None else lent(found, _opened(base))
    return AdapterSource(ref, _opened(_named_base(ref) if base is None else base))


@without_collector()
def open_whole(asked: Asked) -> Source:
    """Return a model that is no adapter; where it is quantised as the plain weights that its codes stand for.

    Raises:
        CheckpointError: It cannot be read.
    """
    return _whole(find_model(asked), None)


def _whole(ref: ModelRef, base: Source | Asked | None) -> Source:
    return decoded(open_as_stored(ref) if ref.base is None else _patched(ref, base))


def open_as_stored(ref: ModelRef) -> Source:
    """Return a model that is no adapter as its files hold it, in whatever layout they are, codes as codes.

    Raises:
        CheckpointError: It cannot be read.
    """
    opens = None if holds_weights(ref.path) else find_layout(ref.path)
    return Checkpoint(ref) if opens is None else opens(ref)


def _patched(ref: ModelRef, base: Source | Asked | None) -> Source:
    """Return a patch over what stands before it, which may be open already."""
    assert ref.base is not None
    is_open = isinstance(base, Checkpoint) and base.path == ref.base.path and ref.base.base is None
    # What decodes a patch stands above this room, so it is looked for by its name, and only where there is a patch.
    source = import_module("..patch.source", __package__)
    return source.PatchedSource(ref, base if is_open else None)


def needs_base(ref: ModelRef) -> bool:
    """Return whether a folder or file holds an adapter and no whole model."""
    if holds_weights(ref.path):
        return False
    return is_adapter(ref.path) or loose_lora(ref.path) is not None


def open_adapter(asked: Asked, base: Source | Asked) -> AdapterSource:
    """Return an adapter over its base.

    Raises:
        CheckpointError: The folder holds none, or it does not fit the base.
    """
    ref = find_model(asked)
    if not needs_base(ref):
        raise CheckpointError(f"`{ref}` is a whole checkpoint, not an adapter")
    return AdapterSource(ref, _opened(base))


def _opened(base: Source | Asked) -> Source:
    return base if isinstance(base, Source) else open_whole(base)


def _named_base(adapter: ModelRef) -> ModelRef:
    """Return the base that an adapter's configuration names."""
    named = AdapterConfig.read(adapter.path).base_model if is_adapter(adapter.path) else None
    try:
        if named is not None:
            return find_model(named, fetch=False)  # nobody has asked for it by its name
    except CheckpointError:
        pass  # told below, with what to do about it
    if not is_adapter(adapter.path):
        raise CheckpointError(
            f"`{adapter}` is a LoRA, not a whole checkpoint", hint="name the base that it was trained on before it"
        )
    raise CheckpointError(
        f"`{adapter}` is an adapter, and its base is not at hand",
        hint=f"`{ADAPTER_CONFIG}` says `{named}`; name the base, by a folder or on the hub, with `only_changed` in a "
        "calibration",
        options=["only_changed"],
    )
