"""Opening a model: the class of source that a path asks for."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from .adapter.config import ADAPTER_CONFIG, AdapterConfig, is_adapter
from .adapter.source import AdapterSource
from .folder import Checkpoint, holds_weights
from .source import Source


def open_checkpoint(path: Path | str, base: Source | Path | str | None = None) -> Source:
    """Return a checkpoint, or an adapter over its base.

    Args:
        base: What an adapter was trained on, and itself no adapter of a base that is not given; None is the folder
            that `adapter_config.json` names, where there is such. A whole checkpoint has no use for it.

    Raises:
        CheckpointError: It cannot be read, or an adapter's base is nowhere.
    """
    folder = Path(path)
    if not is_adapter(folder) or holds_weights(folder):
        return Checkpoint(folder)
    if base is None:
        named = AdapterConfig.read(folder).base_model
        if named is None or not Path(named).is_dir():
            raise CheckpointError(
                f"`{folder}` is an adapter, and its base is not at hand",
                hint=f"`{ADAPTER_CONFIG}` says `{named}`; name a folder for the base",
            )
        base = named
    return open_adapter(folder, base)


def open_adapter(folder: Path, base: Source | Path | str) -> AdapterSource:
    """Return an adapter over its base.

    Raises:
        CheckpointError: The folder holds none, or it does not fit the base.
    """
    if not folder.exists():
        raise CheckpointError(f"`{folder}` does not exist")
    if not is_adapter(folder) or holds_weights(folder):
        raise CheckpointError(f"`{folder}` is a whole checkpoint, not an adapter")
    return AdapterSource(folder, base if isinstance(base, Source) else Checkpoint(base))
