"""Names of an adapter's tensors as PEFT saves them, whatever training put around them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from ...errors import CheckpointError
from ..foreign import GATHER
from ..tensor_info import TensorInfo
from ..wrappers import ANYWHERE

logger = logging.getLogger(__name__)
PREFIX = "base_model.model."
DATA_PARALLEL = re.compile(r"^(?:module\.)+(?=base_model\.)")
DOUBLED = re.compile(r"^(?:base_model\.model\.){2,}")
# PEFT keeps factors by the adapter's name while it trains, and leaves that out when it saves.
NAMED = re.compile(
    r"\.(lora_(?:embedding_)?[AB]|lora_magnitude_vector|trainable_tokens_delta)\.(?!weight$|bias$)[^.]+(?=\.(?:weight|bias)$|$)"
)
SAVED = ".modules_to_save.default."


def saved_name(name: str) -> str:
    """Return the name that PEFT would have saved a tensor under."""
    name = ".".join(part for part in name.split(".") if part not in ANYWHERE)
    name = DOUBLED.sub(PREFIX, DATA_PARALLEL.sub("", name))
    return NAMED.sub(r".\1", name).replace(SAVED, ".modules_to_save.")


def by_saved_name(folder: Path, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Return an adapter's tensors by the names that PEFT saves them under; names that were others are said.

    Raises:
        CheckpointError: A tensor is empty, or two have one name.
    """
    found: dict[str, TensorInfo] = {}
    repaired = {}
    for name, info in tensors.items():
        if not info.num_elements:
            raise CheckpointError(
                f"`{name}` in `{folder}` is empty, of shape {list(info.shape)}: ZeRO-3 saves such tensors "
                f"unless it gathers them",
                hint=GATHER,
            )
        plain = saved_name(name)
        if plain in found:
            raise CheckpointError(f"`{name}` and `{found[plain].name}` in `{folder}` are both `{plain}`")
        found[plain] = info
        if plain != name:
            repaired[name] = plain
    if repaired:
        name, plain = next(iter(repaired.items()))
        logger.warning("%d names in `%s` are wrapped: `%s` is read as `%s`", len(repaired), folder, name, plain)
    return found
