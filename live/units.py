"""What is loaded together: the blocks of a model, and each module that lies outside of them.

A block is a child of one of the model's ModuleLists, or a part of it that is itself such a list, unless transformers
says that the whole is not to be split. Outside of blocks the unit is the topmost module that holds no block.
Parameters that a container holds itself belong to no unit and stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .privates import undivided

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class Unit:
    """Parameters that are loaded and freed together.

    Attributes:
        index: Its place in the order of registration, which units run in as a rule.
        name: Of the module.
        parameters: Names of parameters, as in `named_parameters`, including those tied to another name.
    """

    index: int
    name: str
    module: nn.Module
    parameters: tuple[str, ...]


def find_units(model: Any) -> list[Unit]:
    """Return the units of a model in order of registration."""
    modules: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    _collect(model, "", undivided(model), modules, seen)
    return [
        Unit(
            index=index,
            name=name,
            module=module,
            parameters=tuple(f"{name}.{leaf}" for leaf, _ in module.named_parameters(remove_duplicate=False)),
        )
        for index, (name, module) in enumerate(modules)
    ]


def _holds_blocks(module: nn.Module) -> bool:
    from torch import nn

    return any(isinstance(child, (nn.ModuleList, nn.ModuleDict)) and len(child) for child in module.modules())


def _collect(
    module: nn.Module, prefix: str, no_split: set[str], found: list[tuple[str, nn.Module]], seen: set[int]
) -> None:
    from torch import nn

    for name, child in module.named_children():
        full = f"{prefix}{name}"
        if id(child) in seen or not any(True for _ in child.parameters()):
            continue
        is_list = isinstance(child, (nn.ModuleList, nn.ModuleDict))
        whole = type(child).__name__ in no_split or not _holds_blocks(child)
        if not is_list and whole:
            seen.add(id(child))
            found.append((full, child))
        else:
            _collect(child, f"{full}.", no_split, found, seen)
