"""A LoRA adapter as a file of the tensors that it changes: each is computed from the base when it is read.

The tuned model of an adapter is what PEFT's `merge_and_unload` gives in float32: `W + s·B·A`, rounded to float32
once for δ and once for the sum, or DoRA's `m·(W + s·B·A)/‖W + s·B·A‖`. A method then sees `δ = W_sft − W_pre` as of
any other pair, so that γ = 1 with nothing dropped gives that merge to the bit. The subtraction costs δ at most half a
unit in the last place of the float32 weight.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
import xxhash

from ...errors import CheckpointError
from ...names import tied_source
from ..bytes_of import as_bytes
from ..safetensors_file import SafetensorsFile
from ..tensor_info import TensorInfo
from ..torch_file import TorchFile
from .config import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterConfig
from .low_rank import LowRank
from .patch import Patch
from .targets import patches_of

if TYPE_CHECKING:
    from ..reader import Checkpoint

NORM_ELEMENTS = 1 << 20  # of W + s·B·A at once, for its norms


@final
class AdapterFile:
    """The tensors of the base that an adapter changes, and those that it adds.

    Attributes:
        file: The adapter's weights.
        tensors: By the base's names.
        patches: What becomes of each.
        stored: What the adapter's file holds, by the names there.
        config: The adapter's configuration.
    """

    def __init__(self, folder: Path, base: Checkpoint) -> None:
        self.config = AdapterConfig.read(folder)
        self.file = _weights_of(folder)
        self._folder = folder
        self._base = base
        self._stored = SafetensorsFile(self.file) if self.file.suffix == ".safetensors" else TorchFile(self.file)
        self.stored = self._stored.tensors
        self.patches = patches_of(folder, self.config, self.stored, base)
        self._drop_copies_of_tied()
        self.tensors = {name: self._info(name, patch) for name, patch in self.patches.items()}
        self._factors: dict[str, LowRank] = {}
        self._scales: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def _info(self, name: str, patch: Patch) -> TensorInfo:
        base = self._base.tensors.get(name)
        stored = self.stored[patch.stored] if patch.stored else None
        origin = stored or base
        assert origin is not None  # a product has a target in the base
        if patch.product is not None and not origin.stored.fusible:
            raise CheckpointError(
                f"`{name}` is {origin.stored.torch} in the base, to which an adapter cannot be added",
                hint="fuse into the unquantised base",
            )
        wide = "F64" if origin.dtype == "F64" else "F32"
        return TensorInfo(
            name=name,
            dtype=origin.dtype if patch.product is None else wide,
            shape=origin.shape,
            file=self.file,
            offset=origin.offset,
            nbytes=origin.nbytes,
            derived=True,
        )

    def _drop_copies_of_tied(self) -> None:
        """Forget what PEFT saved of an output that the base ties to its embeddings, if it is no more than a copy."""
        shapes = {name: info.shape for name, info in self._base.tensors.items()}
        for name in [name for name in self.patches if name not in shapes]:
            stored = self.patches[name].stored
            assert stored is not None  # a product has a target in the base
            source = tied_source(name, shapes, self.stored[stored].shape, self._base.config)
            if source is None:
                continue
            other = self.patches.get(source, Patch())
            embeddings = self.read(other.stored) if other.stored else self._base.raw(source).reshape(shapes[source])
            if other.product is not None or not np.array_equal(self.read(stored), embeddings):
                raise CheckpointError(
                    f"`{self._folder}` holds `{name}`, which the base ties to `{source}`",
                    hint="untie them in the base first: store both, and set `tie_word_embeddings` to false",
                )
            del self.patches[name]

    def raw(self, info: TensorInfo, start: int, stop: int) -> np.ndarray:
        """Return elements `start:stop` of the flat tuned tensor."""
        patch = self.patches[info.name]
        found = self._origin(info.name, patch, start, stop)
        factors = self.factors(info.name)
        if factors is None:
            return found
        tuned = found.astype(info.stored.numpy)
        with np.errstate(all="ignore"):
            tuned += factors.delta(start, stop)
            if patch.magnitude is not None:
                tuned *= self._row_scales(info.name, patch, factors)[_lines(patch, factors, start, stop)]
        return tuned

    def _origin(self, name: str, patch: Patch, start: int, stop: int) -> np.ndarray:
        if patch.stored is not None:
            return self._stored.raw(self.stored[patch.stored], start, stop)
        return self._base.raw(name, start, stop)

    def read(self, name: str) -> np.ndarray:
        """Return one of the adapter's own tensors, by its name in the adapter's file."""
        info = self.stored[name]
        return self._stored.raw(info, 0, info.num_elements).reshape(info.shape)

    def factors(self, name: str) -> LowRank | None:
        """Return what an adapter adds to a tensor of the base, before DoRA's magnitudes; None if it replaces it."""
        product = self.patches[name].product
        if product is None:
            return None
        with self._lock:
            if name not in self._factors:
                self._factors[name] = product.factors(self.read)
            return self._factors[name]

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
        magnitude = self.read(patch.magnitude).astype(np.float32).reshape(-1)
        if magnitude.shape != squares.shape:
            raise CheckpointError(
                f"`{patch.magnitude}` in `{self._folder}` has {len(magnitude)} magnitudes for {len(squares)} outputs"
            )
        with self._lock, np.errstate(all="ignore"):
            self._scales[name] = magnitude / np.sqrt(squares).astype(np.float32)
            return self._scales[name]

    def release(self, info: TensorInfo) -> None:
        """Let go of a tensor's factors, and of the base's pages."""
        with self._lock:
            self._factors.pop(info.name, None)
            self._scales.pop(info.name, None)
        patch = self.patches[info.name]
        if patch.stored is not None:
            self._stored.release(self.stored[patch.stored])
        elif info.name in self._base.tensors:
            self._base.release(info.name)

    def digest(self) -> str:
        """Return a digest of the whole adapter, weights and configuration."""
        digest = xxhash.xxh3_128((self._folder / ADAPTER_CONFIG).read_bytes())
        for name, info in sorted(self.stored.items()):
            digest.update(f"{name} {info.dtype} {info.shape}".encode())
            digest.update(as_bytes(np.ascontiguousarray(self._stored.raw(info, 0, info.num_elements))))
        return digest.hexdigest()


def _lines(patch: Patch, factors: LowRank, start: int, stop: int) -> np.ndarray:
    """Return which output each element belongs to."""
    assert patch.product is not None
    columns = factors.shape[2]
    index = np.arange(start, stop)
    return index % columns if patch.product.transposed else index // columns


def _weights_of(folder: Path) -> Path:
    for name in ADAPTER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"`{folder}` holds an `{ADAPTER_CONFIG}` and no `{ADAPTER_WEIGHTS[0]}`")
