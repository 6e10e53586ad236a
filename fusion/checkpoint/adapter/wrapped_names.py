"""Names of an adapter's tensors without what training put around them: wrappers, and the adapter's own name."""

from __future__ import annotations

import re

PREFIX = "base_model.model."
# Of torch.compile, FSDP and activation checkpointing, anywhere in a name.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
DATA_PARALLEL = re.compile(r"^(?:module\.)+(?=base_model\.)")
DOUBLED = re.compile(r"^(?:base_model\.model\.){2,}")
# PEFT keeps factors by the adapter's name while it trains, and leaves that out when it saves.
NAMED = re.compile(
    r"\.(lora_(?:embedding_)?[AB]|lora_magnitude_vector|trainable_tokens_delta)\.(?!weight$|bias$)[^.]+(?=\.(?:weight|bias)$|$)"
)
SAVED = ".modules_to_save.default."


def unwrapped(name: str) -> str:
    """Return the name that PEFT would have saved a tensor under."""
    name = DATA_PARALLEL.sub("", WRAPPERS.sub("", name))
    name = DOUBLED.sub(PREFIX, name)
    return NAMED.sub(r".\1", name).replace(SAVED, ".modules_to_save.")
