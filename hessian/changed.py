"""Which tensors of a fine-tune differ from its base."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..fusion.checkpoint import Checkpoint, Source
from ..fusion.errors import CurvatureError
from ..fusion.names import align

CHUNK_ELEMENTS = 1 << 22


def changed_tensors(tuned: Source, base_path: Path | str) -> frozenset[str]:
    """Return the names of tuned tensors that are not the base's bit for bit, or that the base lacks.

    Reading stops at the first chunk that differs, so a tensor that was trained costs little. Needs no torch.

    Raises:
        CurvatureError: None differs.
    """
    if tuned.changed is not None:
        return tuned.changed
    base = Checkpoint(base_path)
    base_shapes = {name: info.shape for name, info in base.tensors.items()}
    pairs = align(base_shapes, {name: info.shape for name, info in tuned.tensors.items()}).pairs
    base_of = {tuned_name: base_name for base_name, tuned_name in pairs.items()}
    changed = frozenset(name for name in tuned.tensors if not _same(base, base_of.get(name), tuned, name))
    if not changed:
        raise CurvatureError(f"no tensor of `{tuned.path}` differs from `{base_path}`, so there is nothing to measure")
    return changed


def _same(base: Source, base_name: str | None, tuned: Source, name: str) -> bool:
    if base_name is None:
        return False
    ours, theirs = tuned.tensors[name], base.tensors[base_name]
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    for start in range(0, ours.num_elements, CHUNK_ELEMENTS):
        stop = min(start + CHUNK_ELEMENTS, ours.num_elements)
        left, right = tuned.read(name, start, stop), base.read(base_name, start, stop)
        if not np.array_equal(left.view(np.uint8), right.view(np.uint8)):
            return False
    tuned.release(name)
    base.release(base_name)
    return True
