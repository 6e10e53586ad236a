"""Which tensor of the base each tensor of an adapter belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from ...errors import CheckpointError
from ...names import config_values, is_vocabulary
from ..quantised import refuse_codes
from ..tensor_info import TensorInfo
from .config import AdapterConfig
from .module_names import ModelNames, ModelParameter, ParameterPart
from .patch import Patch, Product
from .saved_names import PREFIX, by_saved_name

if TYPE_CHECKING:
    from ..source import Source

ReadTensor = Callable[[str], np.ndarray]
FACTOR = re.compile(r"(.+)\.(lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.(weight|bias))?")
RESIZED = "was the base's vocabulary resized before training? Then save that base, and name it here"
UNTIE = "`sculpt untie` stores both: merge into what it writes"
TOKENS = ".token_adapter.trainable_tokens_delta"
ALL_TOKENS = ".token_adapter.base_layer.weight"  # the table that those are rows of, written where it grew
# Models of transformers with linear layers that store (d_in, d_out).
CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"})


@dataclass
class _Parts:
    """The tensors of one adapted module."""

    key: str
    module: str
    tensors: dict[str, TensorInfo] = field(default_factory=dict)

    @property
    def embedding(self) -> bool:
        return "lora_embedding_A" in self.tensors

    @property
    def a(self) -> TensorInfo:
        return self.tensors["lora_embedding_A" if self.embedding else "lora_A"]

    @property
    def b(self) -> TensorInfo:
        return self.tensors["lora_embedding_B" if self.embedding else "lora_B"]


def without_prefix(name: str) -> str:
    """Return a name without what PEFT wraps around it."""
    return ".".join(part for part in name.removeprefix(PREFIX).split(".") if part != "base_layer")


@final
class _Resolver:
    """Turns the tensors of an adapter into patches of the base's."""

    def __init__(
        self, folder: Path, config: AdapterConfig, own: Mapping[str, TensorInfo], base: Source, read: ReadTensor
    ) -> None:
        self._folder, self._config, self._own, self._base, self._read = folder, config, own, base, read
        self._names = ModelNames(base)
        self.patches: dict[str, Patch] = {}
        self._evidence: set[bool] = set()

    def _missing(self, module: str) -> CheckpointError:
        tied = True in config_values(self._base.config, "tie_word_embeddings") and is_vocabulary(f"{module}.weight")
        return CheckpointError(
            f"`{self._folder}` adapts `{module}`, which is not in the base `{self._base.ref}`"
            + (": it is tied to the embeddings there, and merging would change both" if tied else ""),
            hint=UNTIE if tied else "is this the model that the adapter was trained on?",
        )

    def parameter(self, name: str) -> ModelParameter | None:
        """Return a parameter of the model by its name there, or None."""
        info = self._base.tensors.get(name)
        if info is not None:
            return ModelParameter(shape=info.shape, parts=(ParameterPart(tensor=name),))
        try:
            return self._names.find(name)
        except (CheckpointError, ImportError):
            return None  # the checkpoint's own names are all there is

    def add(self, tensor: str, **parts: object) -> None:
        """Note what becomes of a tensor; no two modules may change one."""
        known = self.patches.get(tensor, Patch())
        changes = {key: value for key, value in parts.items() if value is not None}
        if any(getattr(known, key) is not None for key in changes):
            raise CheckpointError(f"`{self._folder}` adapts `{tensor}` twice")
        self.patches[tensor] = Patch(**{**vars(known), **changes})

    def stored(self, name: str, info: TensorInfo) -> None:
        """Take a whole tensor: a module that was saved, a trained bias, or an embedding.

        PEFT may write one twice, as the module that was saved and as an embedding of the model.
        """
        name = without_prefix(name).replace(".modules_to_save.", ".")
        if ".original_module." in name:
            return  # what it was before training
        other = self.patches.get(name)
        if other is not None and other.stored and np.array_equal(self._read(other.stored), self._read(info.name)):
            return
        found = self.parameter(name)
        if found is None:
            self.add(name, stored=info.name)  # the plan decides about tensors that the base lacks
        elif len(found.parts) == 1 and found.parts[0].expert is None:
            self.add(found.parts[0].tensor, stored=info.name)
        else:
            raise CheckpointError(f"`{self._folder}` holds `{name}`, which the base splits over several tensors")

    def tokens(self, module: str, info: TensorInfo) -> None:
        """Take rows of an embedding; those after its last make it longer."""
        rows, found = self._config.rows_of(module), self.parameter(f"{module}.weight")
        name, shape = f"{module}.weight", None
        if found is not None and len(found.parts) == 1:
            name, shape = found.parts[0].tensor, found.shape
        table = self.patches.get(name, Patch()).stored
        shape = shape if table is None else self._own[table].shape
        if rows is None or shape is None:
            raise self._missing(f"{module}.weight")
        length = max(shape[0], *(row + 1 for row in rows))
        if info.shape != (len(rows), *shape[1:]) or not set(range(shape[0], length)) <= set(rows):
            raise CheckpointError(
                f"`{self._folder}` holds {list(info.shape)} for the tokens {', '.join(map(str, rows))} of `{module}`, "
                f"which is {list(shape)} {'in the base' if table is None else 'there'}",
                hint=RESIZED,
            )
        self.add(name, rows=(info.name, rows))

    def note_evidence(self, parts: _Parts) -> None:
        """Learn from weights that are not square which way round the others lie."""
        found = self.parameter(parts.module + ".weight")
        if found is not None and not parts.embedding and parts.b.shape[0] != parts.a.shape[1]:
            self._evidence |= self._ways(found.shape, parts, 1)

    def _ways(self, shape: tuple[int, ...], parts: _Parts, experts: int) -> set[bool]:
        """Return which of the two layouts, transposed or not, gives the shape."""
        a, b = parts.a.shape, parts.b.shape
        found = set()
        if shape in ((b[0], *a[1:]), (experts, b[0], *a[1:])):
            found.add(False)
        if shape in ((*a[1:], b[0]), (experts, *a[1:], b[0])):
            found.add(True)
        return found

    def _is_square_transposed(self, module: str, *, experts: bool) -> bool:
        """Decide the layout of a square weight."""
        flag = self._config.fan_in_fan_out
        conv1d = bool(config_values(self._base.config, "model_type") & CONV1D_MODELS)
        if not experts and (self._evidence == {flag} if conv1d else self._evidence <= {flag}):
            return flag
        # PEFT writes the flag of whichever module came last, and experts have none.
        known = self._names.is_transposed(module)
        if known is None:
            raise CheckpointError(f"cannot tell whether the square weight of `{module}` is stored (d_in, d_out)")
        return known

    def module(self, parts: _Parts) -> None:
        """Add the patches of one adapted module, or of one of its parameters."""
        config, module = self._config, parts.module
        by_name = self._targets_of(module)
        own = f"{module}.weight"
        if own in self._base.tensors and own not in by_name:
            by_name = []
        candidates = self._found(by_name)
        if not candidates:
            by_name, candidates = [], self._found([own])
        if f"{module}.in_proj_weight" in self._base.tensors:
            # PEFT 0.21 adds the δ of its output projection twice, in training as in merging: who can tell the version?
            raise CheckpointError(f"`{self._folder}` adapts the `MultiheadAttention` `{module}`, which is not fused")
        if not candidates:
            raise self._missing(module)
        fitting = {}
        for name, found in candidates.items():
            experts = found.shape[0] if by_name and len(found.shape) == 3 else 1
            rank = config.rank_of(name if by_name else module)
            ways = {True} if parts.embedding else self._ways(found.shape, parts, experts)
            if parts.embedding and found.shape != (parts.a.shape[1], parts.b.shape[0]):
                ways = set()
            if ways and rank * experts == parts.a.shape[0] and parts.b.shape[1] == rank * experts:
                fitting[name] = (found, experts, ways)
        if len(fitting) != 1:
            refuse_codes(self._base, [part.tensor for found in candidates.values() for part in found.parts])
            shapes = ", ".join(f"`{name}` {list(found.shape)}" for name, found in candidates.items())
            raise CheckpointError(
                f"the factors of `{module}` in `{self._folder}`, {list(parts.b.shape)} and {list(parts.a.shape)}, "
                f"fit {'more than one' if fitting else 'none'} of {shapes}"
            )
        ((name, (found, experts, ways)),) = fitting.items()
        transposed = True in ways
        if len(ways) == 2:
            # A 2-d parameter that is adapted by name is (d_out, d_in) to PEFT, whatever its module says.
            transposed = (
                self._is_square_transposed(module, experts=experts > 1) if not by_name or experts > 1 else False
            )
        self._add_product(parts, name if by_name else module, found, experts, transposed)

    def _add_product(self, parts: _Parts, key: str, found: ModelParameter, experts: int, transposed: bool) -> None:
        scale = self._config.scaling(key)
        magnitude = parts.tensors.get("lora_magnitude_vector")
        split = len(found.parts) > 1
        if split and (magnitude is not None or transposed):
            raise CheckpointError(f"`{parts.module}` is split over several tensors of the base, which is not fused")
        for part in found.parts:
            shape = self._base.tensors[part.tensor].shape
            rows = (part.first, part.first + shape[0]) if split else None
            product = Product(
                key=key,
                a=parts.a.name,
                b=parts.b.name,
                scale=scale,
                experts=experts,
                transposed=transposed,
                expert=part.expert,
                rows=rows,
            )
            self.add(part.tensor, product=product, magnitude=magnitude.name if magnitude else None)
        bias = parts.tensors.get("lora_B.bias")
        if bias is not None:
            target = self.parameter(f"{parts.module}.bias")
            if target is None or target.shape != bias.shape:
                raise self._missing(f"{parts.module}.bias")
            self.add(target.parts[0].tensor, product=Product(key=key, a=None, b=bias.name, scale=scale))

    def _found(self, names: Sequence[str]) -> dict[str, ModelParameter]:
        found = {name: parameter for name in names if (parameter := self.parameter(name)) is not None}
        # What was saved whole has its own shape: of an embedding that was resized before training.
        for name, parameter in found.items():
            stored = self.patches.get(parameter.parts[0].tensor, Patch()).stored
            if stored is not None and len(parameter.parts) == 1 and parameter.parts[0].expert is None:
                found[name] = replace(parameter, shape=self._own[stored].shape)
        return found

    def _targets_of(self, module: str) -> list[str]:
        """Return the parameters of a module that are adapted by name."""
        if not self._config.target_parameters:
            return []
        leaves = {name.rpartition(".")[2] for name in self._config.target_parameters}
        return [name for leaf in sorted(leaves) if self._config.targets(name := f"{module}.{leaf}")]


def patches_of(
    folder: Path, config: AdapterConfig, tensors: Mapping[str, TensorInfo], base: Source, read: ReadTensor
) -> dict[str, Patch]:
    """Return what an adapter makes of the base's tensors, by their names.

    Args:
        read: A tensor of the adapter, by its name there.

    Raises:
        CheckpointError: A target is not in the base, a shape does not fit, or a tensor is of an unknown kind.
    """
    named = by_saved_name(folder, tensors)
    if config.token_rows and not any(name.endswith(TOKENS) for name in named):
        raise CheckpointError(f"`{folder}` trains tokens (`trainable_token_indices`), and holds none of them")
    resolver = _Resolver(folder, config, tensors, base, read)
    modules: dict[str, _Parts] = {}
    for name, info in named.items():
        matched = FACTOR.fullmatch(name)
        if matched is None:
            if name.endswith(TOKENS):
                continue
            if name.endswith(ALL_TOKENS):
                resolver.stored(name.removesuffix(ALL_TOKENS) + ".weight", info)
                continue
            if ".lora_" in name or "token_adapter" in name:
                raise CheckpointError(f"`{name}` in `{folder}` is of a kind that sculpt does not know")
            resolver.stored(name, info)
            continue
        key, kind, leaf = matched.groups()
        parts = modules.setdefault(key, _Parts(key=key, module=without_prefix(key)))
        parts.tensors[f"{kind}.bias" if leaf == "bias" else kind] = info
    for name, info in named.items():
        if name.endswith(TOKENS):
            resolver.tokens(without_prefix(name.removesuffix(TOKENS)), info)
    for parts in modules.values():
        pair = {"lora_embedding_A", "lora_embedding_B"} if parts.embedding else {"lora_A", "lora_B"}
        unknown = set(parts.tensors) - pair - {"lora_magnitude_vector", "lora_B.bias"}
        if not pair <= set(parts.tensors) or unknown:
            raise CheckpointError(
                f"`{parts.key}` in `{folder}` has {sorted(parts.tensors)} in place of one A and one B"
            )
        resolver.note_evidence(parts)
    for parts in modules.values():
        resolver.module(parts)
    return resolver.patches
