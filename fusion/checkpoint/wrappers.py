"""Names without what wraps a model while it trains: compilers, parallel runs, what holds adapters or a value head."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

# Modules that only hold another one; no architecture has any of the name.
ANYWHERE = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"})
# These are names that a model's own modules could have: they wrap it where all tensors are within.
IN_FRONT = ("module.", "base_model.model.", "pretrained_model.")
BESIDE = "v_head."  # of a value-head model, beside the language model that it holds


@dataclass(frozen=True, kw_only=True)
class Unwrapped:
    """Names without wrappers.

    Attributes:
        names: By the name in the file.
        wrappers: What was taken out, and of how many names.
    """

    names: Mapping[str, str]
    wrappers: Mapping[str, int] = field(default_factory=dict)


def unwrapped(names: Collection[str]) -> Unwrapped:
    """Return the names as the model itself has them; as they are where two of them would become one."""
    found, wrappers = {name: name for name in names}, dict[str, int]()
    while True:
        prefix = _prefix_of_all(list(found.values()))
        if not prefix and not any(wrapper in name for name in found.values() for wrapper in ANYWHERE):
            break
        shorter = {name: _without(own, prefix) for name, own in found.items()}
        taken = [_taken(found[name], prefix) for name in found]
        if shorter == found:
            break
        for wrapper in (wrapper for each in taken for wrapper in each):
            wrappers[wrapper] = wrappers.get(wrapper, 0) + 1
        found = shorter
    if len(set(found.values())) < len(found):
        return Unwrapped(names={name: name for name in names})
    return Unwrapped(names=found, wrappers=wrappers)


def _prefix_of_all(names: Collection[str]) -> str:
    own = [name for name in names if not name.startswith(BESIDE)]
    return next((prefix for prefix in IN_FRONT if own and all(name.startswith(prefix) for name in own)), "")


def _without(name: str, prefix: str) -> str:
    return ".".join(part for part in name.removeprefix(prefix).split(".") if part not in ANYWHERE)


def _taken(name: str, prefix: str) -> list[str]:
    front = [prefix] if prefix and name.startswith(prefix) else []
    return front + sorted({part + "." for part in name.split(".") if part in ANYWHERE})
