"""Which tensors of a checkpoint make which parameters of a transformers model, by transformers' own rules for loading.

`transformers.core_model_loading` applies renamings, then at most one converter a tensor; so do we, with its functions.
They are no public interface: this module is their one user. It sits this low because adapters name a model's modules,
so that opening one needs the rules before any model runs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from ..errors import ModelError, first_line


def named_class(config: Mapping[str, Any] | None) -> Any | None:
    """Return the first class among a config's `architectures` that transformers has, or None.

    Raises:
        ModelError: It has the class and cannot import it.
    """
    import transformers

    names = (config or {}).get("architectures")
    for name in names if isinstance(names, list) else ():
        try:
            found = getattr(transformers, str(name), None)
        except (ImportError, RuntimeError) as error:  # of a library that it uses, which may not fit the others
            raise ModelError(f"transformers cannot import `{name}`: {first_line(error)}", hint=MISFIT) from error
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return None


def with_own_kernels(config: Any) -> Any:
    """Return a config that leaves it to transformers how attention and experts are computed."""
    config._attn_implementation = None  # recursive, as transformers' setter is
    config._experts_implementation = None
    return config


MISFIT = "where this names torchvision or torchaudio, it does not fit torch: install the one that does, or neither"


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Tensors that one converter makes parameters of.

    Attributes:
        first: The parameter that the tensors are renamed to; the converter may make others beside it.
        converter: A copy of transformers' own, with `operations`, `source_patterns` and `target_patterns`.
        sources: Pattern to the names of tensors, in the order in which they are given.
    """

    first: str
    converter: Any
    sources: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class SortedNames:
    """Tensors of a checkpoint, sorted by what becomes of them.

    Attributes:
        plain: Parameter to the one tensor that it is.
        converted: Parameters that several tensors make, or that are a part of one.
        unexpected: Tensors that make nothing.
    """

    plain: Mapping[str, str]
    converted: tuple[Converted, ...]
    unexpected: frozenset[str]


@final
class LoadingRules:
    """The rules of one model, which may be on the meta device.

    Attributes:
        state: Its parameters and persistent buffers by name.
    """

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        mapping = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._prefix = model.base_model_prefix
        self.state: Mapping[str, Any] = model.state_dict()

    @cached_property
    def _by_pattern(self) -> dict[str, Any]:
        return {pattern: entry for entry in self._converters for pattern in entry.source_patterns}

    def rename(self, name: str) -> tuple[str, str | None]:
        """Return the model's name of a checkpoint's tensor, and the converter's pattern that it matched, if any."""
        from transformers.core_model_loading import rename_source_key

        state: Any = self.state
        found = rename_source_key(name, self._renamings, self._converters, self._prefix, state)
        if found[0] not in state and name in state:
            return rename_source_key(name, [], [], self._prefix, state)
        return found

    def sort(self, names: Iterable[str]) -> SortedNames:
        """Return what becomes of the tensors of a checkpoint."""
        from transformers.core_model_loading import dot_natural_key

        plain: dict[str, str] = {}
        unexpected: set[str] = set()
        collected: dict[str, tuple[Any, dict[str, list[str]]]] = {}
        for name in sorted(names, key=dot_natural_key):
            target, pattern = self.rename(name)
            if target not in self.state:
                unexpected.add(name)
            elif pattern is None:
                plain[target] = name
            else:
                _, sources = collected.setdefault(target, (self._by_pattern[pattern], {}))
                sources.setdefault(pattern, []).append(name)
        return SortedNames(
            plain=plain,
            converted=tuple(
                # A converter gathers state while it runs, so each parameter has one of its own.
                Converted(
                    first=first,
                    converter=copy.deepcopy(converter),
                    sources={pattern: tuple(found) for pattern, found in sources.items()},
                )
                for first, (converter, sources) in collected.items()
            ),
            unexpected=frozenset(unexpected),
        )
