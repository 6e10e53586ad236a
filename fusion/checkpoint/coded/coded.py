"""A tensor that a file keeps as codes with scales, and how its elements are computed from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final

import numpy as np

from ...errors import CheckpointError
from ...native import TAKEN_FOR, Kernel, address
from ..source import Source
from ..tensor_info import TensorInfo

WHOLES = Kernel("coded", "wholes", "FBFFFI uuuuuuu f")
HALVES = Kernel("coded", "halves", "FBFFFI uuuuuuu u")
BIASED = Kernel("coded", "biased", "F uuu")
NO_NUMBERS = np.zeros(1, np.int32)

Rows = Callable[[int, int], np.ndarray]  # of the rows `first … last − 1` of something


class Decoder(Protocol):
    """What computes the elements of a tensor, by rows of as many `columns`; the last row may be padded."""

    @property
    def columns(self) -> int:
        """How many elements a row has."""
        ...

    def rows(self, first: int, last: int) -> np.ndarray:
        """Return rows `first … last − 1`, (rows, columns)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How a tensor is stored as codes, in a format that is written too.

    Attributes:
        kind: `fp8`: matrices of E4M3 with a scale for each block; `mxfp4`: stacked experts as gpt-oss has them.
        block: Rows and columns that share a scale, of FP8.
        codes, scales: Names of the stored tensors.
        scale_dtype: Of the scales of FP8: `F32`, or `F8_E8M0` for powers of 2.
    """

    kind: Literal["fp8", "mxfp4"]
    block: tuple[int, int] = (1, 1)
    codes: str
    scales: str
    scale_dtype: str = "F32"


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Coded:
    """A tensor that is computed from others of its file.

    Attributes:
        info: As it is read: under the name of the parameter, in the dtype that the format's library gives.
        format: What the format is called.
        parts: Names of the tensors that it is made of, or that are idle once it is decoded; the codes first.
        in_order: Whether its rows lie in the codes one after the other.
        form: How it can be written again; None where its format is only read.
        own: The checkpoint that has the parts.
        said: What that checkpoint's configuration says of codes.
    """

    info: TensorInfo
    format: str
    parts: tuple[str, ...]
    decoder: Decoder
    in_order: bool = True
    form: Form | None = None
    own: Source
    said: Mapping[str, Any]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return elements `start … stop − 1` of the flat tensor."""
        columns = max(1, self.decoder.columns)
        first, last = start // columns, -(-stop // columns)
        return self.decoder.rows(first, last).reshape(-1)[start - first * columns : stop - first * columns]


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Scaled:
    """Elements `(table[code] − zero) · scale + bias`, computed in float32, rounded, and again once a bias is added.

    Attributes:
        row_block: Rows that share scales.
        width: Consecutive columns that share a scale; or the scale's number of each column.
        codes: Bytes of rows, (rows, bytes): each is a code, or two.
        table: What each code means, float32: 256 values of bytes, or 16 of halves of bytes.
        high_first: Whether the upper half of a byte is the first of its two codes.
        scales: float32, (blocks of rows, groups of columns), for blocks `first … last − 1`.
        times: What a product is multiplied by then, of codes that are bytes.
    """

    columns: int
    dtype: np.dtype
    codes: Rows
    table: np.ndarray
    high_first: bool = False
    scales: Rows
    row_block: int = 1
    width: int | np.ndarray
    zeros: Rows | None = None
    biases: Rows | None = None
    times: float = 1.0

    def rows(self, first: int, last: int) -> np.ndarray:
        """Return rows `first … last − 1`."""
        kernel_dtype = self.dtype if self.dtype in TAKEN_FOR else np.dtype(np.float32)
        out = np.empty((last - first, self.columns), kernel_dtype)
        if out.size:
            self._decode(first, last, out)
        return out.astype(self.dtype, copy=False)

    def _decode(self, first: int, last: int, out: np.ndarray) -> None:
        per_byte = 2 if len(self.table) == 16 else 1
        codes = np.ascontiguousarray(self.codes(first, last))
        blocks = first // self.row_block, -(-last // self.row_block)
        with np.errstate(all="ignore"):
            scales = _float32(self.scales(*blocks))
            zeros = np.zeros_like(scales) if self.zeros is None else _float32(self.zeros(*blocks))
        groups, width, numbers = scales.shape[1], 0, NO_NUMBERS
        if isinstance(self.width, int):
            width = self.width
            groups_needed = -(-self.columns // width)
        else:
            numbers = np.ascontiguousarray(self.width, np.int32)
            groups_needed = 1 + int(numbers.max())
            assert len(numbers) == self.columns
        assert codes.dtype == np.uint8
        assert len(codes) == len(out)
        assert codes.shape[1] * per_byte >= self.columns
        assert len(scales) == blocks[1] - blocks[0]
        assert scales.shape == zeros.shape
        assert groups >= groups_needed
        wide = np.empty(self.columns, np.float32)
        places = [address(each) for each in (wide, codes, self.table, scales, zeros, numbers)]
        skip = first - blocks[0] * self.row_block
        shape = (*out.shape, codes.shape[1], skip, self.row_block, groups, width)
        if per_byte == 1:
            WHOLES((out,), *places, *shape, self.times)
        else:
            HALVES((out,), *places, *shape, 4 if self.high_first else 0)
        if self.biases is not None:
            biases = _float32(self.biases(first, last))
            assert biases.size * width == out.size
            BIASED((out,), address(biases), *out.shape, width)


def _float32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)


@final
class StoredParts:
    """The stored tensors of a checkpoint and what its configuration says of their codes.

    Attributes:
        said: `quantization_config`, or what stands in its place; empty where there is none.
        dtype: safetensors code of the float that the model is to be computed in.
    """

    def __init__(self, own: Source, said: Mapping[str, Any], dtype: str) -> None:
        self.own = own
        self.said = said
        self.dtype = dtype

    def info(self, name: str) -> TensorInfo | None:
        """Return what is known of a stored tensor; None where there is none of the name."""
        return self.own.tensors.get(name)

    def stored(self, name: str) -> np.ndarray:
        """Return a stored tensor in its shape; a view where the file is mapped."""
        return self.own.read(name).reshape(self.own.tensors[name].shape)

    def floats(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return flat elements as float32; bytes are exponents of 2 with a bias of 127, as microscaling has them."""
        return as_floats(self.own.read(name, start, stop))

    def coded(
        self,
        parameter: str,
        format_name: str,
        decoder: Decoder,
        *,
        shape: tuple[int, ...],
        dtype: str,
        codes: str,
        beside: tuple[str, ...],
        in_order: bool = True,
        form: Form | None = None,
    ) -> Coded:
        """Return a decoded tensor, stored in the model's own dtype once it is written."""
        first = self.own.tensors[codes]
        info = TensorInfo(name=parameter, dtype=dtype, stored=self.dtype, shape=shape, file=first.file)
        parts = (codes, *(name for name in beside if name in self.own.tensors))
        return Coded(
            info=info,
            format=format_name,
            parts=parts,
            decoder=decoder,
            in_order=in_order,
            form=form,
            own=self.own,
            said=self.said,
        )

    def misfit(self, codes: str, beside: str, what: str) -> CheckpointError:
        """Return the refusal of codes whose scales do not fit."""
        shapes = [list(self.own.tensors[name].shape) for name in (codes, beside)]
        return CheckpointError(f"`{beside}` {shapes[1]} in `{self.own.ref}` does not fit `{codes}` {shapes[0]}: {what}")


with np.errstate(over="ignore"):
    EXPONENTS = np.exp2(np.arange(-127, 129, dtype=np.float32))


def as_floats(stored: np.ndarray) -> np.ndarray:
    """Return scales as float32; bytes are exponents of 2 with a bias of 127, as microscaling has them."""
    return EXPONENTS[stored] if stored.dtype == np.uint8 else stored.astype(np.float32)


def by_rows(parts: StoredParts, name: str, length: int) -> Rows:
    """Return what reads rows of `length` floats of a stored tensor."""
    return lambda first, last: parts.floats(name, first * length, last * length).reshape(-1, length)


def rows_of_bytes(parts: StoredParts, name: str, length: int) -> Rows:
    """Return what reads rows of `length` stored elements as bytes, (rows, bytes)."""
    return lambda first, last: (
        np.ascontiguousarray(parts.own.read(name, first * length, last * length))
        .view(np.uint8)
        .reshape(last - first, -1)
    )
