"""Whether transformers would load named tensors whole under a configuration, found out without reading a weight.

The class is built on the meta device, as calibration builds it, and its own loading rules are asked which tensors make
which parameters. Names and shapes are not all: what a layer does (sliding or full attention, positions or none, experts
or none) may follow from its number, so that a layer in another place is another layer with the same weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ..fusion.checkpoint import Source, TensorInfo
from ..fusion.checkpoint.loading_rules import named_class
from ..fusion.checkpoint.output.scratch import Scratch
from ..fusion.checkpoint.output.workspace import told
from ..fusion.checkpoint.pretrained import read_config
from ..fusion.checkpoint.quantised import codes_in
from ..fusion.errors import ModelError, Way, first_line
from ..fusion.file_kinds import CONFIG
from ..fusion.names import block_of
from . import privates
from .layer_kinds import LayerKinds
from .names import NameMap, assemble, misfits
from .skeleton import model_class

ALLOWED = (Way(option="load_check", value="false", effect="goes on all the same"),)
Tensors = Mapping[str, TensorInfo]
Blocks = Mapping[str, tuple[Source, str]]


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """How tensors would load.

    Attributes:
        class_name: Of transformers; None where nothing could be built, so that nothing was checked.
        told: The same in words.
    """

    class_name: str | None
    told: str


class _NotCheckableError(Exception):
    """No class can be built that the tensors could be compared with."""


def check_loads(
    tensors: Tensors, config: Mapping[str, Any] | None, *, blocks: Blocks | None = None, inputs: Sequence[Source] = ()
) -> LoadReport:
    """Return how tensors would load under the content of a `config.json`.

    Args:
        blocks: By block of these tensors, the model and the block there that it is made of: its kind must be the same.
        inputs: Models that these tensors are made of. What is wrong with every one of them is not held against the
            result, and where no class can be built of any, nothing is checked.

    Raises:
        ModelError: Parameters would stay without a tensor, tensors would be left over, shapes differ, or a layer is of
            another kind than the one that it is made of.
    """
    ways = ALLOWED if inputs else ()  # of an output that is only planned
    try:
        built = _built(tensors, config)
    except _NotCheckableError as error:
        return LoadReport(class_name=None, told=f"not checked that it loads: {error}")
    except ModelError as error:
        if any(_builds(model) for model in inputs):
            raise ModelError(f"the output would not load: {error.message}", hint=error.hint, ways=ways) from error
        return LoadReport(class_name=None, told=f"not checked that it loads: {error.message}")
    told = next(_moved(built, blocks or {}), None)
    if told is not None:
        raise ModelError(told, ways=ways)
    problems = built.problems
    if problems:
        common = [found.problems for model in inputs if (found := _input(model)) is not None]
        held = {key: told for key, told in problems.items() if not common or any(key not in own for own in common)}
        if held:
            first, *others = held.values()
            more = f", and {len(others)} more such disagreement{'s' if len(others) > 1 else ''}" if others else ""
            raise ModelError(first + more, hint="names, shapes and `config.json` must be of one model", ways=ways)
    name = type(built.model).__name__
    state = f"`{name}` is filled by all {len(tensors)} tensors"
    if problems:
        state = f"`{name}` is filled as far as by the inputs: {next(iter(problems.values()))}"
    return LoadReport(class_name=name, told=f"loads: {state}")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Built:
    """A model on the meta device beside the tensors that are to fill it."""

    model: Any
    tensors: Tensors
    names: NameMap = field(repr=False)

    @cached_property
    def problems(self) -> dict[str, str]:
        """What does not go together, in words, by parameter or tensor."""
        name = type(self.model).__name__
        missing = set(self.names.missing) - set(privates.tied_names(self.model))
        found = {
            f"missing {key}": f"no tensor makes `{key}`, so that `{name}` would load with random values there"
            for key in _but(missing, privates.may_be_missing(self.model))
        }
        found |= {
            f"unexpected {key}": f"`{key}` has no place in `{name}`, which would load without it"
            for key in _but(self.names.unexpected, privates.may_be_unexpected(self.model))
        }
        for misfit in misfits(self.model, self.tensors, self.names):
            found[f"shape {misfit.parameter}"] = (
                f"`{misfit.tensor}` gives {list(misfit.shape)}, and `{misfit.parameter}` of `{name}` is "
                f"{list(misfit.expected)} by `config.json`"
            )
        return found

    @cached_property
    def modules(self) -> dict[str, str]:
        """What each block of the tensors is called in the model."""
        return {
            block_of(tensor): block_of(target)
            for assembly in self.names.assemblies
            for target in assembly.targets
            for tensor in assembly.source_names
        }

    @cached_property
    def kinds(self) -> LayerKinds:
        return LayerKinds(self.model)


def _but(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    ignored = [re.compile(pattern) for pattern in patterns]
    return sorted(name for name in names if not any(pattern.search(name) for pattern in ignored))


def _built(tensors: Tensors, config: Mapping[str, Any] | None) -> _Built:
    """Return the model that a configuration names, and what the tensors make of it.

    Raises:
        _NotCheckableError: It is none that transformers could load as it is.
        ModelError: transformers cannot build it.
    """
    if config is None:
        raise _NotCheckableError("there is no `config.json`")
    if next(codes_in(tensors, config), None):
        raise _NotCheckableError("the weights are quantised")
    if config.get("auto_map") and named_class(config) is None:
        raise _NotCheckableError("the model's own code would have to run")
    with Scratch() as scratch:
        with told(scratch.folder):
            (scratch.folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        try:
            loaded = read_config(scratch.folder, config, len(tensors))
        except ModelError as error:
            cause = error.__cause__ or error
            raise ModelError(f"transformers cannot read `config.json`: {first_line(cause)}") from error
    cls = model_class(loaded, None)
    try:
        model = privates.on_meta(cls, loaded, torch.float32)
    except Exception as error:  # transformers raises anything
        raise ModelError(f"transformers cannot build `{cls.__name__}`: {first_line(error)}") from error
    return _Built(model=model, tensors=tensors, names=assemble(model, tensors))


def _input(model: Source) -> _Built | None:
    """Return a model as it was given: an adapter's base, whose configuration it has; None if it cannot be built."""
    own = model.base or model
    try:
        return _built(own.tensors, own.config)
    except (_NotCheckableError, ModelError):
        return None


def _builds(model: Source) -> bool:
    return _input(model) is not None


def _moved(output: _Built, blocks: Blocks) -> Iterator[str]:
    """Yield, in words, each layer that would be of another kind than the one that it is made of."""
    built: dict[int, _Built | None] = {}
    for block, (model, origin) in blocks.items():
        source = built.setdefault(id(model), _input(model)) if id(model) not in built else built[id(model)]
        if source is None or block not in output.modules or origin not in source.modules:
            continue
        differs = output.kinds.difference(output.modules[block], source.kinds, source.modules[origin])
        if differs is not None:
            what, here, there = differs
            yield (
                f"`{block}` would have {what} {here}, and `{origin}` of `{model.ref}`, which it is made of, has {there}"
            )
