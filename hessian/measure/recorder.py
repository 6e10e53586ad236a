"""Watches the operations of a forward and sums what each watched parameter is given.

It sits where torch dispatches operations to kernels, below modules and functions. What a model calls its layers,
whether it calls a module or uses its weight directly, one expert at a time or through einsum: a linear use of a
parameter arrives as one of a few operations. A parameter is recognised by the storage of the operand, so views need
no tracing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...live.privates import DispatchMode, StorageWeakRef, changes_of, storage_key, storage_keys
from .gram import LastProduct, own_rows
from .moments import column_squares
from .placement import Placement, compose, locate
from .row_weights import RowWeights
from .statistics import ParameterStatistics

PLAIN = {int, float, bool, str, type(None)}  # what most arguments are that are no tensors


@dataclass(frozen=True)
class Use:
    """A tensor that is (part of) a watched parameter."""

    statistics: ParameterStatistics
    placement: Placement


@dataclass(frozen=True)
class _Watched:
    """A storage: of a parameter itself, or of a copy of a part of it (`outer`), such as one in another dtype."""

    storage: StorageWeakRef
    shape: tuple[int, ...]
    statistics: ParameterStatistics
    outer: Placement | None


@dataclass(eq=False)
class _Inputs:
    """The matrix of inputs that was summed last, and what was made of it."""

    rows: Tensor
    version: int
    weights: Tensor | None
    squares: Tensor | None = None
    own: Tensor | None = None

    def are(self, rows: Tensor, weights: Tensor | None) -> bool:
        """Return whether these are the inputs at hand."""
        # As `rows` is held, no other tensor can have its address; its version tells of writes in place.
        return (
            self.rows.data_ptr() == rows.data_ptr()
            and self.rows.shape == rows.shape
            and self.rows.stride() == rows.stride()
            and self.rows.dtype == rows.dtype
            and self.version == changes_of(rows)
            and (self.weights is None) == (weights is None)
        )


OperatorRule = Callable[["Recorder", Any, Sequence[Any], dict[str, Any]], Any]


@dataclass(frozen=True, kw_only=True)
class RuleTable:
    """What is done about the operations that a watched parameter is used by.

    Attributes:
        rules: Those that record its inputs.
        products: A matrix times its inputs, recorded before it is run.
        views: Those that give a part of it, which is known by its storage.
    """

    rules: Mapping[Any, OperatorRule]
    products: Collection[Any]
    views: Collection[Any]


class Stop(BaseException):
    """Ends a forward whose remaining operations are of no use; models do not catch it."""


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among values, however nested."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
        elif type(value) not in PLAIN and isinstance(value, Mapping):
            found += _tensors(value.values())
    return found


def _is_repeated(tensor: Tensor, times: int) -> bool:
    """Return whether an axis before the last holds the same so many times, one after the other or side by side."""
    for axis, length in enumerate(tensor.shape[: max(1, tensor.ndim - 1)]):
        if not length or length % times:
            continue
        blocks, neighbours = tensor.unflatten(axis, (times, -1)), tensor.unflatten(axis, (-1, times))
        first, single = blocks.narrow(axis, 0, 1), neighbours.narrow(axis + 1, 0, 1)
        if bool((blocks == first).all()) or bool((neighbours == single).all()):
            return True
    return False


Around = Callable[[Any, Sequence[Any], Callable[[], Any]], Any]


def run_alone(_func: Any, _args: Sequence[Any], run: Callable[[], Any]) -> Any:
    """Run an operation with nothing around it."""
    return run()


class Recorder(DispatchMode):
    """A dispatch mode; while it is entered, uses of watched parameters are summed.

    Attributes:
        rows: The masks of the batch that is running.
        absent: Storages that stand for weights that are not loaded, by key.
        demand: Called with the key of an absent storage that an operation is about to use; returns the weight.
        made: Called with each new tensor.
        restore: Called with the storages that an operation is about to use, which may be on disk.
        around: Called with each operation, its arguments and what runs it; returns what the operation gives.
        last_product: Shared by the sums of x·xᵀ.
        paused: Nothing is recorded meanwhile.
        final: What is given to this parameter ends the forward: nothing that follows is of use.
    """

    def __init__(self, table: RuleTable) -> None:
        super().__init__()
        self._table = table
        self.rows = RowWeights((), 1)
        self.absent: dict[int, StorageWeakRef] = {}
        self.demand: Callable[[int], Tensor] | None = None
        self.made: Callable[[Tensor], None] = lambda _: None
        self.restore: Callable[[Sequence[int]], None] = lambda _: None
        self.around: Around = run_alone
        self.paused = False
        self.final: ParameterStatistics | None = None
        self._watched: dict[int, _Watched] = {}
        self._of_samples: dict[int, StorageWeakRef] = {}
        self.last_product = LastProduct()
        self._last: _Inputs | None = None

    def watch(self, tensor: Tensor, statistics: ParameterStatistics) -> None:
        """Sum the inputs of a contiguous tensor from now on; it is known by its storage, which must be its own."""
        known = self._watched.get(storage_key(tensor))
        assert known is None or known.storage.expired() or known.statistics is statistics
        # The weak reference also keeps the key from being given to another storage once the weight is gone.
        storage = StorageWeakRef(tensor.untyped_storage())
        self._watched[storage_key(tensor)] = _Watched(storage, tuple(tensor.shape), statistics, None)

    def is_watched(self, key: int) -> bool:
        """Return whether a storage is a watched parameter's, or a copy of one."""
        return key in self._watched

    def forget_dead(self) -> None:
        """Drop what is known of storages that are gone."""
        self._watched = {key: w for key, w in self._watched.items() if not w.storage.expired()}
        self._of_samples = {key: storage for key, storage in self._of_samples.items() if not storage.expired()}
        self._last = None

    def use_of(self, value: Any) -> Use | None:
        """Return the parameter that a tensor is a view of, and where it lies in it."""
        if not isinstance(value, Tensor):
            return None
        watched = self._watched.get(storage_key(value))
        if watched is None or watched.storage.expired():
            return None
        placement = locate(watched.shape, tuple(value.shape), value.stride(), int(value.storage_offset()))
        if placement is not None and watched.outer is not None:
            placement = compose(watched.outer, placement)
        return None if placement is None else Use(watched.statistics, placement)

    def copied(self, use: Use, copy: Tensor) -> None:
        """Take a tensor for a copy of a part of a parameter: what it is given, the parameter is given."""
        # A copy keeps the strides of what it copies, so that a transposed view's is laid out like the parameter.
        order = sorted(range(copy.ndim), key=lambda k: (-copy.stride(k), k))
        shape = tuple(copy.shape[k] for k in order)
        if not copy.permute(order).is_contiguous():
            return
        outer = Placement(tuple(use.placement.axes[k] for k in order), use.placement.part, use.placement.shape)
        storage = StorageWeakRef(copy.untyped_storage())
        self._watched[storage_key(copy)] = _Watched(storage, shape, use.statistics, outer)

    def note_samples(self, tensors: Any) -> None:
        """Take tensors, however nested, for such as belong to the samples of a batch."""
        for tensor in _tensors((tensors,)):
            key = storage_key(tensor)
            if key not in self._of_samples:  # no other storage has the key of one that is held weakly
                self._of_samples[key] = StorageWeakRef(tensor.untyped_storage())

    def follow(self, given: Any, made: Any) -> None:
        """Take what was made of something that belongs to the samples of a batch for such itself."""
        self._follow(storage_keys(_tensors((given,))), made)

    def _follow(self, keys: Iterable[int], made: Any) -> None:
        if self.rows.num_samples > 1 and self._belongs(keys):
            self.note_samples(made)

    def _belongs(self, keys: Iterable[int]) -> bool:
        return not self._of_samples.keys().isdisjoint(keys)

    def is_shared(self, *operands: Tensor) -> bool:
        """Return whether nothing here belongs to one sample of a batch, nor stands there once a sample.

        It was then computed once for all of them, as a table of positions is.
        """
        if self.rows.num_samples == 1 or self._belongs(storage_keys(operands)):
            return False
        inputs = [operand for operand in operands if self.use_of(operand) is None]
        return not any(_is_repeated(operand, self.rows.num_samples) for operand in inputs)

    def column_squares(self, rows: Tensor, weights: Tensor | None) -> Tensor:
        """Return Σ_t w_t·x_tj² of a matrix."""
        inputs = self._remembered(rows, weights)
        if inputs.squares is None:
            inputs.squares = column_squares(rows, weights)
        return inputs.squares

    def own_rows(self, rows: Tensor, weights: Tensor | None) -> Tensor:
        """Return the rows as sums of x·xᵀ take them."""
        inputs = self._remembered(rows, weights)
        if inputs.own is None:
            inputs.own = own_rows(rows, weights)
        return inputs.own

    def _remembered(self, rows: Tensor, weights: Tensor | None) -> _Inputs:
        """Return what is known of a matrix of inputs; that of the last is, as q, k and v see the same."""
        if self._last is None or not self._last.are(rows, weights):
            self._last = _Inputs(rows, changes_of(rows), weights)
        return self._last

    def forget_inputs(self) -> None:
        """Let go of the inputs that were summed last."""
        self._last = None
        self.last_product.forget()

    def _with_loaded(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            key = storage_key(value)
            if key in self.absent and not self.absent[key].expired() and self.demand is not None:
                return self.demand(key)
            return value
        if isinstance(value, (list, tuple)) and _tensors(value):
            return type(value)(self._with_loaded(item) for item in value)
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        keys = storage_keys(_tensors(args))
        out = self.around(func, args, lambda: self._run(func, args, kwargs, keys))
        self._follow([*keys, *storage_keys(_tensors(kwargs.values()))], out)
        for tensor in (out,) if isinstance(out, Tensor) else _tensors((out,)):
            self.made(tensor)
        return out

    def _run(self, func: Any, args: Any, kwargs: Any, keys: Sequence[int]) -> Any:
        """Run an operation with its weights loaded and its tensors in memory, and record it.

        Args:
            keys: Of the storages of the tensors among `args`.
        """
        if self.absent and not self.absent.keys().isdisjoint(keys):
            args = tuple(self._with_loaded(arg) for arg in args)
            keys = storage_keys(_tensors(args))
        self.restore(keys)
        # Nearly every operation of a forward ends here: what comes until here is what a recorder costs.
        if self.paused or self._watched.keys().isdisjoint(keys):
            return func(*args, **kwargs)
        rule = self._table.rules.get(func)
        if rule is not None:
            return rule(self, self._last_operation(func, args), args, kwargs)
        self._note(func, args)
        return func(*args, **kwargs)

    def _last_operation(self, func: Any, args: Sequence[Any]) -> Any:
        """Return the operation, or one that ends the forward where nothing after it is wanted."""
        if self.final is None or func not in self._table.products:
            return func
        # The rule records before it runs what is given here, so the last parameter's inputs are summed all the same.
        uses = [self.use_of(tensor) for tensor in _tensors(args)]
        if not any(use is not None and use.statistics is self.final for use in uses):
            return func

        def end(*_: Any, **__: Any) -> Any:
            raise Stop

        return end

    def _note(self, func: Any, args: Sequence[Any]) -> None:
        """Remember that a parameter was used by an operation without a rule, to say why it has no statistics."""
        if func in self._table.views:
            return
        for tensor in _tensors(args):
            use = self.use_of(tensor)
            if use is not None:
                use.statistics.ops.add(str(func).removeprefix("aten.").split(".")[0])
