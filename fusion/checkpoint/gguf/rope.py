"""What a GGUF file says of rotary positions that transformers does not take from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import CheckpointError

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
HINT = "put the original's `config.json` beside the file, and name their folder"


def scaled(said: Mapping[str, Any], factors: np.ndarray | None, theta: float, head_dim: int) -> dict[str, Any]:
    """Return what a config says of scaled positions; nothing where they are not scaled.

    Args:
        said: The keys of the file below its architecture's name.
        factors: What each frequency is divided by, from the file; Llama 3 stores no more of its scaling.

    Raises:
        CheckpointError: They are scaled in a way that the file does not tell.
    """
    if factors is not None:
        factor = float(factors.max(initial=1))
        expected = llama3(theta, head_dim, factor)
        if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4, atol=0):
            raise CheckpointError("`rope_freqs.weight` holds other factors than Llama 3 divides by", hint=HINT)
        return {"rope_type": "llama3", "factor": factor, **LLAMA3}
    kind = said.get("rope.scaling.type", "none")
    if kind in ("none", "default") or said.get("rope.scaling.factor") == 1:
        return {}
    if kind not in ("linear", "yarn"):
        raise CheckpointError(
            f"the GGUF file scales rotary positions by `{kind}`, and does not say all of it", hint=HINT
        )
    found = {"rope_type": kind, "factor": float(said.get("rope.scaling.factor", 1))}
    original = said.get("rope.scaling.original_context_length")
    return found | ({"original_max_position_embeddings": int(original)} if kind == "yarn" and original else {})


def llama3(theta: float, head_dim: int, factor: float) -> np.ndarray:
    """Return what Llama 3.1 and its successors divide frequencies by: 1, `factor`, or something between."""
    low, high, length = (
        LLAMA3["low_freq_factor"],
        LLAMA3["high_freq_factor"],
        LLAMA3["original_max_position_embeddings"],
    )
    waves = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (length / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(waves < length / high, 1.0, np.where(waves > length / low, factor, between))
