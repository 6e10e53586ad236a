"""The tuned side of a protected fuse: each tensor's delta, mixed by two-sided curvature before the method sees it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from typing import Any, TypeVar, final

import numpy as np

from ..arithmetic.curvature import Curvature
from ..arithmetic.per_element import PerElement, per_element
from ..arithmetic.row_layout import check_matrix, row_layout
from ..arithmetic.two_sided import Protection, fractions, mixing_blocks
from ..device import torch_device
from ..errors import CurvatureError

CHUNK = 1 << 22  # elements that are multiplied at once: fixed, so that no bit depends on tiles or threads
HELD = 4  # tensors and matrices that are kept until they are released

TARGET_ALONE, GENERAL_ALONE = "target alone", "general alone"  # forms of tensors that only one side reached
BY_ELEMENT = ("interpolation", "diagonal", TARGET_ALONE, GENERAL_ALONE)  # forms without matrices

T = TypeVar("T")
Read = Callable[[int, int], tuple[np.ndarray, np.ndarray]]  # start, stop -> base and tuned elements


@final
class Protector:
    """Gives `W_pre + δ·A·(A + λ·G)⁻¹` in place of the tuned tensors; any thread may ask.

    A diagonal works on any run of elements. With matrices a tensor is made whole, one at a time, and a few are held in
    float32 until they are released.

    Args:
        device: Where matrices are factorised and multiplied, as torch names it.
    """

    def __init__(self, protection: Protection, *, device: str = "cpu") -> None:
        self.protection = protection
        self._device = device
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._whole: OrderedDict[str, np.ndarray] = OrderedDict()
        self._fractions: OrderedDict[str, PerElement] = OrderedDict()
        self._mixings: OrderedDict[tuple[int, int, int], tuple[Any, Any, Any]] = OrderedDict()

    def form(self, curvature: Curvature | None) -> str:
        """Return what a tensor is mixed by: the form that was asked for, or what its statistics allow."""
        general = None if curvature is None else curvature.general
        if curvature is None or general is None or not (curvature.num_tokens or general.num_tokens):
            return "interpolation"
        if not general.num_tokens:
            return TARGET_ALONE
        if not curvature.num_tokens:
            return GENERAL_ALONE
        if self.protection.needs_gram and self._grams(curvature) is not None:
            return self.protection.curvature
        return "diagonal"

    def tuned(
        self, name: str, shape: tuple[int, ...], curvature: Curvature | None, start: int, stop: int, read: Read
    ) -> np.ndarray:
        """Return elements `start … stop − 1` of the protected tensor, float32, or float64 where an input is.

        Raises:
            CurvatureError: The statistics do not fit the tensor.
            MethodError: The matrices cannot be factorised.
        """
        if self.protection.weight == 0:
            return read(start, stop)[1]
        if self.form(curvature) in BY_ELEMENT:
            return self._by_element(name, shape, curvature, start, stop, read)
        assert curvature is not None
        whole = self._known(self._whole, name)
        if whole is None:
            with self._making:  # one at a time: the matrices are large, and torch uses all cores for each
                whole = self._known(self._whole, name)
                if whole is None:
                    whole = self._keep(self._whole, name, self._make_whole(name, shape, curvature, read))
        return whole[start:stop]

    def release(self, name: str) -> None:
        """Let go of a tensor."""
        with self._lock:
            self._whole.pop(name, None)
            self._fractions.pop(name, None)

    def _known(self, held: OrderedDict[str, T], name: str) -> T | None:
        with self._lock:
            return held.get(name)

    def _keep(self, held: OrderedDict[str, T], name: str, made: T) -> T:
        with self._lock:
            _make_room(held)
            held[name] = made
        return made

    def _by_element(
        self, name: str, shape: tuple[int, ...], curvature: Curvature | None, start: int, stop: int, read: Read
    ) -> np.ndarray:
        kept = self._known(self._fractions, name)
        if kept is None:
            known = curvature or Curvature(terms=(), num_tokens=0)
            made = per_element(fractions(name, known, shape, self.protection), shape)
            kept = self._keep(self._fractions, name, made)
        base, tuned = (_widened(array) for array in _alike(*read(start, stop)))
        part = kept.expand(start, stop - start)
        return np.where(part == 1, tuned, base + part * (tuned - base))

    def _grams(self, curvature: Curvature) -> tuple[np.ndarray, np.ndarray] | None:
        """Return Σ x·xᵀ of the target and of general data; None if one is lacking."""
        assert curvature.general is not None
        if curvature.gram is None or curvature.general.gram is None:
            return None
        return curvature.gram, curvature.general.gram

    def _make_whole(self, name: str, shape: tuple[int, ...], curvature: Curvature, read: Read) -> np.ndarray:
        import torch

        device = torch_device(self._device)
        layout = row_layout(name, shape, curvature)
        shapes = {gram.shape for gram in self._grams(curvature) or ()}
        if len(shapes) > 1:
            first, second = (list(found) for found in sorted(shapes))
            raise CurvatureError(
                f"the full Hessians of `{name}` have shapes {first} and {second} on the two sides",
                hint="calibrate the tuned model and the base that are fused",
            )
        rows = prod(shape) // (layout.stack * layout.width)
        step = max(1, CHUNK // layout.width) if layout.is_in_order else rows
        whole: np.ndarray | None = None
        flat = None if layout.is_in_order else [layout.split(_widened(a)) for a in _alike(*read(0, prod(shape)))]
        for k in range(layout.stack):
            mixing: Any = None
            for row in range(0, rows, step):
                count = min(step, rows - row)
                first = (k * rows + row) * layout.width
                if flat is None:
                    pair = [_widened(array) for array in _alike(*read(first, first + count * layout.width))]
                    base, tuned = (array.reshape(count, layout.width) for array in pair)
                else:
                    base, tuned = (array[k] for array in flat)
                if mixing is None:
                    mixing = self._mixing(name, curvature, k)
                if whole is None:
                    whole = np.empty(prod(shape), base.dtype)
                delta = torch.from_numpy(np.ascontiguousarray(tuned - base)).to(device)
                moved = torch.cat([delta[:, part] @ matrix.to(delta.dtype) for part, matrix in mixing], dim=1)
                whole[first : first + base.size] = (base + moved.cpu().numpy()).reshape(-1)
        assert whole is not None
        return whole if flat is None else layout.join(whole.reshape(layout.stack, rows, layout.width))

    def _mixing(self, name: str, curvature: Curvature, k: int) -> Any:
        """Return the blocks of the k-th of the stacked matrices; shared by tensors that see the same inputs."""
        import torch

        device = torch_device(self._device)
        device = torch.device("cpu") if device.type == "mps" else device  # no float64 there
        grams = self._grams(curvature)
        assert grams is not None
        assert curvature.general is not None
        key = (id(grams[0]), id(grams[1]), k)
        if key not in self._mixings:
            matrices, means = [], []
            for gram, side in zip(grams, (curvature, curvature.general), strict=True):
                one = gram[k] if gram.ndim == 3 else gram
                check_matrix(name, one)
                diagonal = np.diagonal(gram, axis1=-2, axis2=-1)
                matrices.append(torch.from_numpy(one.astype(np.float64)).to(device) / side.num_tokens)
                means.append(float(diagonal.mean(dtype=np.float64)) / side.num_tokens)
            blocks = mixing_blocks(
                name, matrices[0], matrices[1], self.protection, mean_target=means[0], mean_general=means[1]
            )
            mixing = [(part, matrix.float().to(torch_device(self._device))) for part, matrix in blocks]
            _make_room(self._mixings, 2)
            self._mixings[key] = (mixing, *grams)  # held, so that ids stay theirs
        return self._mixings[key][0]


def _make_room(held: OrderedDict[Any, Any], limit: int = HELD) -> None:
    while len(held) >= limit:
        held.popitem(last=False)


def _alike(base: np.ndarray, tuned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both in float64 if one is."""
    if np.float64 in (base.dtype, tuned.dtype):
        return base.astype(np.float64), tuned.astype(np.float64)
    return base, tuned


def _widened(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == np.float64 else array.astype(np.float32)
