"""Σx² of a whole model in memory, by watching the functions that it calls, and told to the checkpoint by values.

Nothing here is shared with the code under test: functions are watched rather than what the dispatcher makes of them,
sums are dense and in float64, and a weight is known by the values of its elements, which are all different. So no
storage, view, renaming, stacking or permuting needs to be known.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Found:
    """Of each tensor of a checkpoint, dense: Σx², and Σyx of its inputs and outputs; NaN where nothing is known."""

    sums: Mapping[str, np.ndarray]
    products: Mapping[str, np.ndarray]


class Watch(TorchFunctionMode):
    """Dense sums of every element of every parameter, by its place among all of them in the order of their values."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__()
        self.values = np.sort(values)
        self.sums = np.zeros(len(values))
        self.products = np.zeros(len(values))
        self.reached = np.zeros(len(values), bool)
        self.multiplied = np.zeros(len(values), bool)
        self._shifted: dict[int, tuple[weakref.ref[Tensor], np.ndarray]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        rule = RULES.get(getattr(func, "__name__", ""))
        if rule is not None:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                rule(self, out, *args, **(kwargs or {}))
        return out

    def places(self, tensor: Any) -> np.ndarray | None:
        """Return where each element of a tensor of weights stands, or None of another tensor."""
        if not isinstance(tensor, Tensor) or not tensor.numel() or not tensor.is_floating_point():
            return None
        shifted = self._shifted.get(tensor.data_ptr())
        if shifted is not None and shifted[0]() is not None and shifted[1].size == tensor.numel():
            return shifted[1].reshape(tuple(tensor.shape))
        ends = tensor[(0,) * tensor.ndim], tensor[(-1,) * tensor.ndim]
        if any(self._find(end) is None for end in ends):
            return None
        return self._find(tensor)

    def _find(self, tensor: Tensor) -> np.ndarray | None:
        own = tensor.detach().float().numpy()
        found = np.minimum(np.searchsorted(self.values, own), len(self.values) - 1)
        return found if (self.values[found] == own).all() else None

    def add(self, places: np.ndarray | None, squares: Tensor | float) -> None:
        """Add to elements what broadcasts to them."""
        if places is None:
            return
        given = squares.numpy() if isinstance(squares, Tensor) else np.asarray(squares)
        shape = np.broadcast_shapes(places.shape, given.shape)
        places, given = np.broadcast_to(places, shape).reshape(-1), np.broadcast_to(given, shape).reshape(-1)
        np.add.at(self.sums, places, given)
        self.reached[places] = True

    def multiply(self, places: np.ndarray | None, products: Tensor) -> None:
        """Add Σyx to elements."""
        if places is not None:
            np.add.at(self.products, places.reshape(-1), products.numpy().reshape(-1))
            self.multiplied[places] = True

    def shift(self, tensor: Tensor, places: np.ndarray) -> None:
        """Know a weight to which a number was added, as in Gemma's norms."""
        self._shifted[tensor.data_ptr()] = (weakref.ref(tensor), places)


def _linear(watch: Watch, out: Tensor, x: Tensor, weight: Tensor, bias: Any = None) -> None:
    rows = x.double().reshape(-1, x.shape[-1])
    known = watch.places(weight)
    watch.add(known, rows.square().sum(0))
    if known is not None:
        watch.multiply(known, (rows @ weight.double().T).T @ rows)
    watch.add(watch.places(bias), float(len(rows)))


def _matmul(watch: Watch, out: Tensor, left: Tensor, right: Tensor, **_: Any) -> None:
    known = watch.places(right)
    if known is not None:
        squares = left.double().square()
        squares = squares.sum(-2) if left.ndim > 1 else squares
        watch.add(known, squares if right.ndim == 1 else squares.unsqueeze(-1))
        if left.ndim > 1 and right.ndim == 2:
            rows = left.double().reshape(-1, left.shape[-1])
            watch.multiply(known, rows.T @ (rows @ right.double()))
    elif (known := watch.places(left)) is not None:
        squares = right.double().square()
        watch.add(known, squares.sum(-1).unsqueeze(-2) if right.ndim > 1 else squares)


def _addmm(watch: Watch, out: Tensor, bias: Tensor, batch1: Tensor, batch2: Tensor, **_: Any) -> None:
    _matmul(watch, out, batch1, batch2)
    if bias.ndim == 1:
        watch.add(watch.places(bias), float(out.shape[:-1].numel()))


def _einsum(watch: Watch, out: Tensor, equation: str, *operands: Any) -> None:
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if len(operands) != 2:
        return
    letters = equation.replace(" ", "").partition("->")[0].split(",")
    if "..." in equation:
        letters = [
            own.replace("...", "ABCDEFGH"[: tensor.ndim - len(own) + 3])
            for own, tensor in zip(letters, operands, strict=True)
        ]
    for ours, theirs in ((1, 0), (0, 1)):
        known = watch.places(operands[ours])
        if known is not None:
            shared = "".join(axis for axis in letters[ours] if axis in letters[theirs])
            squares = torch.einsum(f"{letters[theirs]}->{shared}", operands[theirs].double().square())
            watch.add(known, squares.reshape([
                size if axis in shared else 1 for axis, size in zip(letters[ours], known.shape, strict=True)
            ]))  # fmt: skip
            return


def _embedding(watch: Watch, out: Tensor, indices: Tensor, weight: Tensor, *_: Any, **__: Any) -> None:
    counts = torch.bincount(indices.reshape(-1), minlength=len(weight))
    watch.add(watch.places(weight), counts.double().unsqueeze(1))


def _conv(
    watch: Watch,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> None:
    """Unfold by convolving with a kernel that picks one position of one channel."""
    watch.add(watch.places(bias), out.numel() / out.shape[1 if out.ndim == weight.ndim else 0])
    known = watch.places(weight)
    if known is None:
        return
    x = x if x.ndim == weight.ndim else x.unsqueeze(0)
    convolve = {3: nn.functional.conv1d, 4: nn.functional.conv2d, 5: nn.functional.conv3d}[weight.ndim]
    squares = torch.zeros(weight.shape, dtype=torch.float64)
    for position in np.ndindex(*weight.shape[1:]):
        pick = torch.zeros(groups, *weight.shape[1:], dtype=torch.float64)
        pick[(slice(None), *position)] = 1
        patches = convolve(x.double(), pick, None, stride, padding, dilation, groups)
        per_group = patches.square().transpose(0, 1).flatten(1).sum(1)
        squares[(slice(None), *position)] = per_group.repeat_interleave(len(weight) // groups)
    watch.add(known, squares)

    def convolved(kernel: Tensor) -> Tensor:
        return convolve(x.double(), kernel, None, stride, padding, dilation, groups)

    with torch.enable_grad():  # Σyx is the gradient of y·Wx by W
        kernel = torch.zeros(weight.shape, dtype=torch.float64, requires_grad=True)
        (products,) = torch.autograd.grad((convolved(kernel) * convolved(weight.double()).detach()).sum(), kernel)
    watch.multiply(known, products)


def _of_norm(watch: Watch, normalised: Tensor, weight: Any, bias: Any) -> None:
    """Record what multiplies and what is added, element by element, over the last axes."""
    for own, squares in ((weight, normalised.square()), (bias, torch.ones_like(normalised))):
        if own is not None:
            watch.add(watch.places(own), squares)


def _layer_norm(
    watch: Watch, out: Tensor, x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> None:
    _of_norm(watch, nn.functional.layer_norm(x.double(), shape, None, None, eps), weight, bias)


def _rms_norm(watch: Watch, out: Tensor, x: Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> None:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    _of_norm(watch, nn.functional.rms_norm(x.double(), shape, None, eps), weight, None)


def _group_norm(
    watch: Watch, out: Tensor, x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> None:
    normalised = nn.functional.group_norm(x.double(), groups, None, None, eps)
    _of_norm(watch, normalised.transpose(1, -1), weight, bias)


def _batch_norm(
    watch: Watch,
    out: Tensor,
    x: Tensor,
    mean: Any,
    var: Any,
    weight: Any = None,
    bias: Any = None,
    *rest: Any,
    **given: Any,
) -> None:
    eps = given.get("eps", rest[2] if len(rest) > 2 else 1e-5)
    normalised = nn.functional.batch_norm(x.double(), mean.double(), var.double(), None, None, False, 0.0, eps)
    _of_norm(watch, normalised.transpose(1, -1), weight, bias)


def _is_vector(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.ndim > 0 and sum(size > 1 for size in tensor.shape) <= 1


def _mul(watch: Watch, out: Tensor, left: Any, right: Any) -> None:
    for weight, x in ((left, right), (right, left)):
        if _is_vector(weight) and isinstance(x, Tensor) and x.ndim and watch.places(x) is None:
            watch.add(watch.places(weight), x.double().square().expand(out.shape))


def _add(watch: Watch, out: Tensor, left: Any, right: Any, **_: Any) -> None:
    for bias, x in ((left, right), (right, left)):
        known = watch.places(bias) if isinstance(bias, Tensor) and bias.ndim else None
        if known is None:
            continue
        if not isinstance(x, Tensor) or x.ndim == 0:
            watch.shift(out, known)
        elif _is_vector(bias) and bias.ndim == 1 and x.ndim > 1 and watch.places(x) is None:
            watch.add(known, torch.ones(out.shape, dtype=torch.float64))


RULES: dict[str, Callable[..., None]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm", "mv"), _matmul),
    "__rmatmul__": lambda watch, out, right, left: _matmul(watch, out, left, right),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "einsum": _einsum,
    "embedding": _embedding,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    **dict.fromkeys(("mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply"), _mul),
    **dict.fromkeys(("add", "__add__", "__radd__", "__iadd__"), _add),
}


def _stored(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.torch import load_file

    found: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= {
            name: tensor.float().numpy() for name, tensor in load_file(file).items() if tensor.is_floating_point()
        }
    return found


def brute_force(model: Any, inputs: Iterable[Mapping[str, Tensor]], folder: Path) -> Found:
    """Return the sums of the tensors of a checkpoint by running the whole model, each sample alone and unpadded."""
    all_values = np.concatenate([p.detach().float().numpy().reshape(-1) for p in set(model.parameters())])
    values, counts = np.unique(all_values, return_counts=True)
    values = values[counts == 1]  # those of a table that is computed may not differ
    watch = Watch(values)
    with torch.no_grad(), watch:
        for sample in inputs:
            model(**sample)
    sums = np.where(watch.reached, watch.sums, np.nan)
    products = np.where(watch.multiplied, watch.products, np.nan)
    found = {}
    for name, tensor in _stored(folder).items():
        places = np.minimum(np.searchsorted(watch.values, tensor), len(values) - 1)
        if tensor.size and (watch.values[places] == tensor).all():  # else a buffer
            found[name] = places
    return Found(
        sums={name: sums[places] for name, places in found.items()},
        products={name: products[places] for name, places in found.items()},
    )
