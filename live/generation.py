"""How a model is told to write: greedily, whatever the configuration that it came with would have it do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What of a model's own configuration is not how it chooses: the tokens that begin, end and pad, and how it caches.
TOKENS = ("bos_token_id", "eos_token_id", "decoder_start_token_id", "cache_implementation")
# And what it must write whatever it would choose, as translation models begin with a language.
FORCED = (
    "forced_bos_token_id",
    "forced_eos_token_id",
    "forced_decoder_ids",
    "begin_suppress_tokens",
    "suppress_tokens",
)
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "num_beams")


@contextmanager
def greedy(model: Any, *, max_new_tokens: int, pad_token_id: int | None, penalties: bool) -> Iterator[None]:
    """Let a model choose the likeliest token at every step while this is entered.

    `generate` fills in what it is not told from the configuration that the model came with; so what steers the choice
    there, such as a `repetition_penalty`, is taken out of it, and stays out.

    Args:
        penalties: Keep it, but for sampling and beams.
    """
    from transformers import GenerationConfig

    plain = GenerationConfig().to_dict()
    told = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens, "pad_token_id": pad_token_id}
    # InstructBLIP and its kin hand the writing on to a language model within, which goes by its own.
    before = {m: m.generation_config for m in model.modules() if getattr(m, "generation_config", None) is not None}
    for writer, config in before.items():
        own = config.to_dict()
        kept = own if penalties else {key: own[key] for key in (*TOKENS, *FORCED) if own.get(key) is not None}
        kept = {key: value for key, value in kept.items() if key not in SAMPLING and key in plain}
        writer.generation_config = GenerationConfig(**{**kept, "max_length": None, **told})
    try:
        yield
    finally:
        for writer, config in before.items():
            writer.generation_config = config
