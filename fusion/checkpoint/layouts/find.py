"""Which layout a folder or file has that is neither transformers' nor an adapter's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...ref import ModelRef
from ..gguf.names import is_gguf
from ..source import Source
from .distributed import WITHIN, DistributedCheckpoint, is_distributed
from .meta import MetaCheckpoint, is_meta
from .pipeline import Pipeline, is_pipeline
from .zero import ZeroCheckpoint, is_zero


def find_layout(path: Path) -> Callable[[ModelRef], Source] | None:
    """Return what opens a folder or file in a layout of its own; None of any other."""
    if is_gguf(path):
        from ..gguf.source import GgufSource  # whose kernels want a compiler loaded

        return GgufSource
    if not path.is_dir():
        return None
    if is_distributed(path) or is_distributed(path / WITHIN):
        return DistributedCheckpoint
    if is_pipeline(path):
        return Pipeline
    if is_zero(path):
        return ZeroCheckpoint
    if is_meta(path):
        return MetaCheckpoint
    return None
