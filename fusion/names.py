"""What tensor names tell: which belong together, which block they are in, which a pattern selects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

# Modules whose weight is the vocabulary matrix, at the input or at the output, in transformers' models.
VOCABULARY_MODULES = frozenset(
    {
        "shared", "embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings",
        "lm_head", "embed_out", "output", "decoder", "predictions", "proj_out",
    }
)  # fmt: skip
OUTPUT_MODULES = frozenset({"lm_head", "embed_out", "output", "decoder", "predictions", "proj_out"})
# Buffers that a model computes from its configuration; some versions stored them.
CONSTANT_BUFFERS = frozenset({"inv_freq", "position_ids", "masked_bias", "cos_cached", "sin_cached"})


def selects(patterns: Sequence[str], name: str) -> bool:
    """Return whether any glob matches the whole name; `*` crosses dots."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def is_number(part: str) -> bool:
    """Return whether a part of a name is a number, as those of layers are: `²` and `٣` are digits too, but none."""
    return part.isascii() and part.isdigit() and len(part) < 10


def block_of(name: str) -> str:
    """Return the block that a tensor belongs to: its name up to the first number, else its module.

    `model.layers.3.mlp.up_proj.weight` is in `model.layers.3`, `model.embed_tokens.weight` in `model.embed_tokens`.
    """
    parts = name.split(".")
    for i, part in enumerate(parts):
        if is_number(part):
            return ".".join(parts[: i + 1])
    return ".".join(parts[:-1]) or name


def kind_of(name: str) -> str:
    """Return what a tensor is within a numbered block, such as `mlp.up_proj.weight`; elsewhere its whole name."""
    block = block_of(name)
    return name[len(block) + 1 :] if is_number(block.rsplit(".", 1)[-1]) else name


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a sort key that puts layer 10 after layer 9."""
    return tuple((0, int(part)) if is_number(part) else (1, part) for part in name.split("."))


@dataclass(frozen=True, kw_only=True)
class Renaming:
    """Names that begin with `base_prefix` in the base begin with `tuned_prefix` in the tuned model."""

    base_prefix: str
    tuned_prefix: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Which tuned name stands for which base name.

    Attributes:
        pairs: Base name to tuned name.
        renamings: The prefix rules that were needed.
    """

    pairs: Mapping[str, str]
    renamings: tuple[Renaming, ...]


Shapes = Mapping[str, tuple[int, ...]]


def _prefix_pairs(base_name: str, tuned_names: Iterable[str]) -> set[tuple[str, str]]:
    """Return the prefix pairs that would turn `base_name` into one of the tuned names; none crosses a layer number."""
    found = set()
    base_parts = base_name.split(".")
    for tuned_name in tuned_names:
        tuned_parts = tuned_name.split(".")
        common = 0
        while common < min(len(base_parts), len(tuned_parts)) and base_parts[-1 - common] == tuned_parts[-1 - common]:
            common += 1
        before = base_parts[: len(base_parts) - common], tuned_parts[: len(tuned_parts) - common]
        if common and not any(is_number(part) for parts in before for part in parts):
            found.add(tuple("".join(part + "." for part in parts) for parts in before))
    return found


def _ending(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _apply(rule: tuple[str, str], base: Iterable[str], base_shapes: Shapes, tuned_shapes: Shapes) -> dict[str, str]:
    pairs = {}
    for name in base:
        if name.startswith(rule[0]):
            renamed = rule[1] + name[len(rule[0]) :]
            if tuned_shapes.get(renamed) == base_shapes[name]:
                pairs[name] = renamed
    return pairs


def align(base: Shapes, tuned: Shapes) -> Alignment:
    """Match the names of two checkpoints: equal names first, then by a prefix that one side has and the other not.

    A prefix rule is taken only when one rule matches more of the remaining names, shapes included, than any other;
    where two do equally well the names stay unmatched.
    """
    pairs = {name: name for name in base if name in tuned}
    if len(pairs) in (len(base), len(tuned)):
        return Alignment(pairs=pairs, renamings=())
    renamings = []
    while True:
        left_base = [name for name in base if name not in pairs]
        taken = set(pairs.values())
        left_tuned = {name: shape for name, shape in tuned.items() if name not in taken}
        if not left_base or not left_tuned:
            break
        by_ending: dict[str, list[str]] = {}
        for name in left_tuned:
            by_ending.setdefault(_ending(name), []).append(name)
        longest = max(left_base, key=lambda name: (name.count("."), name))
        rules = _prefix_pairs(longest, by_ending.get(_ending(longest), ()))
        outcomes = sorted(
            ((_apply(rule, left_base, base, left_tuned), rule) for rule in rules),
            key=lambda found: -len(found[0]),
        )
        if not outcomes or not outcomes[0][0]:
            break
        if len(outcomes) > 1 and len(outcomes[0][0]) == len(outcomes[1][0]):
            break
        matched, rule = outcomes[0]
        pairs |= matched
        renamings.append(Renaming(base_prefix=rule[0], tuned_prefix=rule[1], count=len(matched)))
    return Alignment(pairs=pairs, renamings=tuple(renamings))


def module_of(name: str) -> str:
    """Return the last module that a tensor is in, such as `up_proj`; nothing where it is in none."""
    *_, module, _ = ("", *name.rsplit(".", 2))
    return module


def is_vocabulary(name: str) -> bool:
    """Return whether a tensor is a vocabulary matrix (or its bias) by the name of its module."""
    return module_of(name) in VOCABULARY_MODULES


def is_constant(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor is a buffer that a model computes for itself, such as GPT-2's mask, `attn.bias`."""
    leaf = name.rpartition(".")[2]
    return leaf in CONSTANT_BUFFERS or (leaf == "bias" and len(shape) == 4 and shape[:2] == (1, 1))


def is_pooler(name: str) -> bool:
    """Return whether a tensor is of a pooler, which some heads of a model use and others lack."""
    return "pooler" in name and "pooler" in name.split(".")


def config_values(config: Mapping[str, Any] | None, key: str) -> set[Any]:
    """Return the values that a key has in a config and the configs nested in it."""
    if config is None:
        return set()
    found = {config[key]} if isinstance(config.get(key), (int, bool, str)) else set()
    for value in config.values():
        if isinstance(value, Mapping):
            found |= config_values(value, key)
    return found


def with_vocabulary(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return a config, and those nested in it, for a vocabulary of so many rows."""
    return {
        key: rows if key == "vocab_size" else with_vocabulary(value, rows) if isinstance(value, Mapping) else value
        for key, value in config.items()
    }


def tied_source(name: str, shapes: Shapes, shape: tuple[int, ...], config: Mapping[str, Any] | None) -> str | None:
    """Return the stored tensor that stands for `name` in a checkpoint which ties it, or None.

    The config decides: without one, or where it says `tie_word_embeddings: false`, nothing is tied. The source is
    the checkpoint's one vocabulary matrix of that shape.
    """
    if config is None or False in config_values(config, "tie_word_embeddings") or not is_vocabulary(name):
        return None
    candidates = [other for other, found in shapes.items() if found == shape and is_vocabulary(other) and other != name]
    return candidates[0] if len(candidates) == 1 else None
