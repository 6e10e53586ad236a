"""What a layer does beside multiplying by its weights, where layers of one stack differ in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

Facts = Mapping[str, Any]
ABSENT = "absent"


@dataclass(frozen=True, kw_only=True)
class _Stack:
    """The facts of the layers of one stack, by number."""

    layers: Mapping[int, Facts]

    @cached_property
    def telling(self) -> list[str]:
        """The facts in which layers differ; a layer's own number is none."""
        names = dict.fromkeys(name for facts in self.layers.values() for name in facts)
        return [name for name in names if self._tells(name)]

    def _tells(self, name: str) -> bool:
        values = {number: facts.get(name, ABSENT) for number, facts in self.layers.items()}
        first = next(iter(values.values()))
        counts = all(
            value in (number, ABSENT) and not isinstance(value, bool) for number, value in values.items()
        )  # a part of some layers may know the layer's number
        return not counts and any(value != first for value in values.values())


@final
class LayerKinds:
    """The kinds of a model's layers: classes of modules, plain attributes, lists of the configuration."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._stacks: dict[str, _Stack] = {}

    def difference(self, block: str, other: LayerKinds, theirs: str) -> tuple[str, Any, Any] | None:
        """Return in what a layer differs from another model's, with both values; None where their kind is the same.

        Only what differs within one of the stacks tells a kind: models of one kind may differ in a width or a scale.

        Args:
            block: Name of the module, such as `model.layers.3`; one that is in no stack has no kind.
        """
        own, their = self.stack_with(block), other.stack_with(theirs)
        if own is None or their is None:
            return None
        here, there = own.layers[_number(block)], their.layers[_number(theirs)]
        for name in dict.fromkeys((*their.telling, *own.telling)):
            first, second = here.get(name, ABSENT), there.get(name, ABSENT)
            if first != second:
                return f"`{name}`", f"`{first}`", f"`{second}`"
        return None

    def stack_with(self, block: str) -> _Stack | None:
        """Return the stack that a layer is in, if any."""
        prefix, _, number = block.rpartition(".")
        if not number.isdigit():
            return None
        if prefix not in self._stacks:
            layers = dict(self._model.get_submodule(prefix).named_children())
            lists = dict(_lists(self._model.config.to_dict(), len(layers)))
            self._stacks[prefix] = _Stack(
                layers={
                    int(name): {**_facts(layer), **{key: values[int(name)] for key, values in lists.items()}}
                    for name, layer in layers.items()
                    if name.isdigit()
                }
            )
        return self._stacks[prefix]


def _number(block: str) -> int:
    return int(block.rpartition(".")[2])


def _facts(layer: Any) -> dict[str, Any]:
    """Return the class of every module in a layer, and its plain attributes; dropout is for training alone."""
    found: dict[str, Any] = {}
    for path, module in layer.named_modules():
        found[path or "class"] = type(module).__name__
        for name, value in vars(module).items():
            plain = value is None or isinstance(value, (bool, int, float, str))
            if plain and not name.startswith("_") and "drop" not in name:
                found[f"{path}.{name}".lstrip(".")] = value
    return found


def _lists(config: Mapping[str, Any], length: int) -> Iterator[tuple[str, list[Any]]]:
    """Yield the lists of a configuration that have an entry for each layer."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _lists(value, length)
        elif isinstance(value, list) and len(value) == length:
            yield key, value
