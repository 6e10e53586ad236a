"""A LoRA adapter over its base, as one model: each tensor that it changes is computed from the base when it is read.

The tuned model of an adapter is what PEFT's `merge_and_unload` gives in float32: `W + s·B·A`, rounded to float32
once for δ and once for the sum, or DoRA's `m·(W + s·B·A)/‖W + s·B·A‖`. A method then sees `δ = W_sft − W_pre` as of
any other pair, so that γ = 1 with nothing dropped gives that merge to the bit. The subtraction costs δ at most half a
unit in the last place of the float32 weight.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import xxhash

from ...errors import CheckpointError
from ...file_kinds import ADAPTER_CONFIG
from ...names import OUTPUT_MODULES, config_values, is_vocabulary, tied_source, with_vocabulary
from ...ref import ModelRef
from ..bytes_of import as_bytes
from ..coded.coded import Coded
from ..companions import Companion, files_of_tokenizer, further_weights, look_beside
from ..identity import FileIdentity, identities
from ..source import Source, Stored
from ..tensor_file import TensorFile, open_file
from ..tensor_info import TensorInfo
from .config import ADAPTER_WEIGHTS, AdapterConfig, is_adapter
from .loose import loose_lora, read_loose
from .low_rank import LowRank
from .patch import Patch
from .targets import RESIZED, UNTIE, patches_of

HEADS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}  # by PEFT's `task_type`
NORM_ELEMENTS = 1 << 20  # of W + s·B·A at once, for its norms


@final
class AdapterSource(Source):
    """A base with an adapter's changes.

    Attributes:
        patches: What becomes of each tensor that the adapter changes or adds, by the base's names.
        own: What the adapter's file holds, by the names there.
        adapter_config: What the adapter says of itself.
    """

    def __init__(self, ref: ModelRef, base: Source) -> None:
        path = ref.path
        loose = None if is_adapter(path) else loose_lora(path)
        self._identities = identities([path / ADAPTER_CONFIG])
        self.ref, self._base, self.folder = ref, base, base.folder
        self.file_names, self.is_foreign = base.file_names, base.is_foreign
        self._config_file = None if loose is not None else path / ADAPTER_CONFIG
        self._inside: Mapping[str, str] = {}
        if loose is None:
            self.adapter_config = AdapterConfig.read(path)
            weights = _weights_of(path)
            weights += further_weights(path, weights)
            self.files = (path / ADAPTER_CONFIG, *weights)
            self._file_of = _by_tensor(path, weights)
        else:
            opened = open_file(loose)
            read = read_loose(opened, base)
            self.adapter_config, self._inside, self.files = read.config, read.names, (loose,)
            self._file_of = dict.fromkeys(read.names, opened)
        self.own = {
            name: opened.tensors[self._inside.get(name, name)]._replace(name=name)
            for name, opened in self._file_of.items()
        }
        self.patches = patches_of(path, self.adapter_config, self.own, base, self.read_own)
        self._drop_copies_of_tied()
        patched = {name: self._info(name, patch) for name, patch in self.patches.items()}
        # Where a head was trained in the place of the one that predicts tokens, the model has no use for that one.
        replaces_head = self.adapter_config.task in HEADS and patched.keys() - base.tensors.keys()
        without = OUTPUT_MODULES if replaces_head else frozenset[str]()
        kept = {name: info for name, info in base.tensors.items() if not without.intersection(name.split(".")[-2:-1])}
        self.tensors = {**kept, **patched}
        self._refuse_uneven_vocabulary()
        self._factors: dict[str, LowRank] = {}
        self._scales: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    @property
    def base(self) -> Source:
        """The model under the adapter."""
        return self._base

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The base's `config.json`, for the adapter's own vocabulary and for the head that it was trained with."""
        config = self._base.config
        resized = {
            info.shape[0]
            for name, info in self.tensors.items()
            if is_vocabulary(name) and name in self._base.tensors and info.shape != self._base.tensors[name].shape
        }
        if config is not None and len(resized) == 1:
            config = with_vocabulary(config, resized.pop())
        head = HEADS.get(self.adapter_config.task or "")
        added = [self.tensors[name].shape for name in self.patches if name not in self._base.tensors]
        rows = {shape[0] for shape in added if shape}
        if config is None or head is None or len(rows) != 1:
            return config
        labels = {str(k): f"LABEL_{k}" for k in range(rows.pop())}
        return {
            **config,
            "architectures": [re.sub(r"(For\w+|Model)$", "", n) + head for n in config.get("architectures") or ()],
            "id2label": labels,
            "label2id": {name: int(k) for k, name in labels.items()},
        }

    @property
    def changes_nothing(self) -> bool:
        """Whether all that the adapter adds is zero: B is, as before training."""
        products = [patch.product for patch in self.patches.values()]
        return all(product is not None and not self.read_own(product.b).any() for product in products)

    def beside(self) -> list[Companion]:
        """Return what lies in the adapter's folder beside its own files."""
        return look_beside(self.path, self.files) if self.path.is_dir() else []

    def identities(self) -> Mapping[Path, FileIdentity]:
        """Return the adapter's files, and the base's."""
        own = {opened.file: opened.identity for opened in self._file_of.values()}
        return {**self._base.identities(), **self._identities, **own}

    def companions(self) -> dict[Path, Path]:
        """Return what the base is shipped with, but for a tokenizer or processor of the adapter's own."""
        own = files_of_tokenizer(self.path) if self.path.is_dir() else {}
        return {**self._base.companions(), **own}

    def _info(self, name: str, patch: Patch) -> TensorInfo:
        base = self._base.tensors.get(name)
        replaced = self.own[patch.stored] if patch.stored else None
        origin = replaced or base
        assert origin is not None  # a product has a target in the base
        shape = origin.shape
        if patch.rows is not None:
            shape = (max(shape[0], *(row + 1 for row in patch.rows[1])), *shape[1:])
        if (patch.product is not None or patch.rows is not None) and not origin.kind.fusible:
            raise CheckpointError(
                f"`{name}` is {origin.kind.torch} in the base, to which an adapter cannot be added",
                hint="fuse into the unquantised base",
            )
        wide = "F64" if origin.dtype == "F64" else "F32"
        return TensorInfo(
            name=name,
            dtype=origin.dtype if patch.product is None and patch.rows is None else wide,
            # A merge keeps the base's dtype, whatever float the adapter was trained in.
            stored=base.stored if base and base.kind.fusible and origin.kind.fusible else origin.stored,
            shape=shape,
            file=(base or origin).file,
        )

    def _drop_copies_of_tied(self) -> None:
        """Forget what PEFT saved of an output that the base ties to its embeddings, if it is no more than a copy."""
        shapes = {name: info.shape for name, info in self._base.tensors.items()}
        shapes |= {name: self.own[p.stored].shape for name, p in self.patches.items() if p.stored and name in shapes}
        for name in [name for name in self.patches if name not in shapes]:
            stored = self.patches[name].stored
            assert stored is not None  # a product has a target in the base
            source = tied_source(name, shapes, self.own[stored].shape, self._base.config)
            if source is None:
                continue
            other = self.patches.get(source, Patch())
            embeddings = (
                self.read_own(other.stored) if other.stored else self._base.read(source).reshape(shapes[source])
            )
            is_copy = np.array_equal(self.read_own(stored), embeddings) and self._same_rows(self.patches[name], other)
            if other.product is not None or not is_copy:
                raise CheckpointError(
                    f"`{self.path}` holds `{name}`, which the base ties to `{source}`",
                    hint=UNTIE,
                )
            del self.patches[name]

    def _same_rows(self, first: Patch, second: Patch) -> bool:
        """Return whether two patches train the same tokens to the same values, or none."""
        if first.rows is None or second.rows is None:
            return first.rows is second.rows
        own, other = (self.read_own(rows[0]) for rows in (first.rows, second.rows))
        return first.rows[1] == second.rows[1] and np.array_equal(own, other)

    def _refuse_uneven_vocabulary(self) -> None:
        """Refuse an adapter that makes one of two vocabulary matrices longer: the other's rows are not in it."""
        sizes = config_values(self._base.config, "vocab_size")
        before = {name: info for name, info in self._base.tensors.items() if is_vocabulary(name)}
        rows = {
            name: self.tensors[name].shape[0]
            for name, info in before.items()
            if name in self.tensors and info.shape[:1] and info.shape[0] in sizes
        }
        if len(set(rows.values())) > 1:
            told = " and ".join(f"{number} rows of `{name}`" for name, number in rows.items())
            raise CheckpointError(
                f"with `{self.path}` there are {told}",
                hint=RESIZED,
            )

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start … stop − 1` of the flat tuned tensor."""
        patch = self.patches.get(name)
        if patch is None:
            return self._base.read(name, start, stop)
        found = self._origin(name, patch, start, stop)
        factors = self.factors(name)
        if factors is None:
            return found
        stop = start + len(found)
        tuned = found.astype(self.tensors[name].kind.numpy)
        with np.errstate(all="ignore"):
            tuned += factors.delta(start, stop)
            if patch.magnitude is not None:
                tuned *= self._row_scales(name, patch, factors)[_lines(patch, factors, start, stop)]
        return tuned

    def _origin(self, name: str, patch: Patch, start: int, stop: int | None) -> np.ndarray:
        if patch.rows is not None:
            return self._with_rows(name, patch.rows, start, stop)
        if patch.stored is not None:
            return self._read_stored(patch.stored, start, stop)
        return self._base.read(name, start, stop)

    def _with_rows(self, name: str, trained: tuple[str, tuple[int, ...]], start: int, stop: int | None) -> np.ndarray:
        """Return elements of an embedding, the adapter's or the base's, with the trained rows in their place."""
        info, table = self.tensors[name], self.patches[name].stored
        before = self._base.tensors[name].num_elements if table is None else self.own[table].num_elements
        stop = info.num_elements if stop is None else stop
        width = info.num_elements // info.shape[0]
        found = np.zeros(stop - start, info.kind.numpy)
        if start < before:
            end = min(stop, before)
            found[: before - start] = (
                self._base.read(name, start, end) if table is None else self._read_stored(table, start, end)
            )
        own = self.read_own(trained[0]).reshape(len(trained[1]), width)
        for row, values in zip(trained[1], own, strict=True):
            first, last = max(start, row * width), min(stop, (row + 1) * width)
            if first < last:
                found[first - start : last - start] = values[first - row * width : last - row * width]
        return found

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> Stored | None:
        """Return where the base holds a tensor that the adapter leaves alone."""
        return None if name in self.patches else self._base.stored(name, start, stop)

    def coded_as(self, name: str) -> Coded | None:
        """Return how the base stores a tensor that the adapter leaves alone."""
        return None if name in self.patches else self._base.coded_as(name)

    def mapped(self) -> Mapping[Path, np.ndarray]:
        """Return the bytes of the base's files."""
        return self._base.mapped()

    def read_own(self, name: str) -> np.ndarray:
        """Return one of the adapter's own tensors, by its name in the adapter's file."""
        return self._read_stored(name).reshape(self.own[name].shape)

    def _read_stored(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._file_of[name].read(self._inside.get(name, name), start, stop)

    def factors(self, name: str) -> LowRank | None:
        """Return what an adapter adds to a tensor of the base, before DoRA's magnitudes; None if it replaces it."""
        product = self.patches[name].product
        if product is None:
            return None
        with self._lock:
            if name not in self._factors:
                self._factors[name] = product.factors(self.read_own)
            return self._factors[name]

    def low_rank(self, name: str) -> LowRank | None:
        """Return what an adapter adds to a tensor, if it adds nothing else to it and replaces nothing of it."""
        patch = self.patches.get(name)
        plain = patch is not None and patch == Patch(product=patch.product)
        return self.factors(name) if plain else None

    def _row_scales(self, name: str, patch: Patch, factors: LowRank) -> np.ndarray:
        """Return DoRA's m/‖W + s·B·A‖ of each output, norms summed in float64 over blocks of fixed size."""
        with self._lock:
            if name in self._scales:
                return self._scales[name]
        assert patch.product is not None
        assert patch.magnitude is not None
        _, rows, columns = factors.shape
        axis = 0 if patch.product.transposed else 1
        squares = np.zeros(columns if patch.product.transposed else rows)
        height = max(1, NORM_ELEMENTS // columns)
        for first in range(0, rows, height):
            last = min(rows, first + height)
            start, stop = first * columns, last * columns
            block = self._origin(name, patch, start, stop).astype(np.float32) + factors.delta(start, stop)
            sums = np.square(block.reshape(-1, columns), dtype=np.float64).sum(axis=axis)
            if patch.product.transposed:
                squares += sums
            else:
                squares[first:last] = sums
        magnitude = self.read_own(patch.magnitude).astype(np.float32).reshape(-1)
        if magnitude.shape != squares.shape:
            raise CheckpointError(
                f"`{patch.magnitude}` in `{self.path}` has {len(magnitude)} magnitudes for {len(squares)} outputs"
            )
        with self._lock, np.errstate(all="ignore"):
            self._scales[name] = magnitude / np.sqrt(squares).astype(np.float32)
            return self._scales[name]

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let go of the base's pages; with no range, of a tensor's factors too, which all its elements need."""
        patch = self.patches.get(name)
        if patch is None:
            self._base.release(name, start, stop)
        elif start == 0 and stop is None:
            with self._lock:
                self._factors.pop(name, None)
                self._scales.pop(name, None)
            if patch.stored is not None:
                self._file_of[patch.stored].release(patch.stored)
            else:
                self._base.release(name)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the base's fingerprint and of all that the adapter's files hold."""
        return f"xxh3-128:{xxhash.xxh3_128_hexdigest(f'{self._base.fingerprint} {self.digest()}'.encode())}"

    def digest(self) -> str:
        """Return a digest of the whole adapter, weights and configuration, without its base."""
        config = self.adapter_config.exact  # where there is no file of it
        said = repr(sorted(config.items())).encode() if self._config_file is None else self._config_file.read_bytes()
        digest = xxhash.xxh3_128(said)
        for name, info in sorted(self.own.items()):
            digest.update(f"{name} {info.dtype} {info.shape}".encode())
            digest.update(as_bytes(np.ascontiguousarray(self._read_stored(name))))
        return digest.hexdigest()


def _lines(patch: Patch, factors: LowRank, start: int, stop: int) -> np.ndarray:
    """Return which output each element belongs to."""
    assert patch.product is not None
    columns = factors.shape[2]
    index = np.arange(start, stop)
    return index % columns if patch.product.transposed else index // columns


def _by_tensor(folder: Path, files: Sequence[Path]) -> dict[str, TensorFile]:
    """Return the file of each tensor; what was trained beside an adapter is a part of it, whatever file it is in."""
    found: dict[str, TensorFile] = {}
    for file in files:
        opened = open_file(file)
        for name in opened.tensors:
            if name in found:
                raise CheckpointError(
                    f"`{name}` is in two files of `{folder}`, `{found[name].file.name}` and `{file.name}`"
                )
            found[name] = opened
    return found


def _weights_of(folder: Path) -> list[Path]:
    for name in ADAPTER_WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
    raise CheckpointError(f"`{folder}` holds an `{ADAPTER_CONFIG}` and no `{ADAPTER_WEIGHTS[0]}`")
