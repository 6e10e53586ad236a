"""How one tensor of an output is stored as codes and scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from ...dtypes import DTYPES
from ..coded.coded import Coded, Form
from ..coded.encode import GROUP, fp8_rows, mxfp4_rows
from .layout import OutputTensor

Uniform = Callable[[str, int, int], np.ndarray]  # of a tensor's elements `start … stop − 1`, in [0, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoding:
    """A tensor that is encoded as it is written.

    Attributes:
        before: How a model that the output is made of stores it in this very form; its codes stay where its values do.
        origin: The file of the base that the tensor lies in.
    """

    name: str
    shape: tuple[int, ...]
    form: Form
    before: Coded | None
    origin: str | None

    @property
    def strip(self) -> int:
        """Elements that are encoded together: rows that share scales, or an expert."""
        if self.form.kind == "mxfp4":
            return prod(self.shape[1:])
        return min(self.form.block[0], self.shape[0]) * self.shape[1]

    @property
    def num_inputs(self) -> int:
        """How many inputs the matrix has."""
        return self.shape[1]

    @property
    def stored(self) -> tuple[OutputTensor, OutputTensor]:
        """The two tensors that are written: codes and scales."""
        if self.form.kind == "mxfp4":
            experts, inputs, outputs = self.shape
            shapes = (experts, outputs, inputs // GROUP, GROUP // 2), (experts, outputs, inputs // GROUP)
            dtypes = ("U8", "U8")
        else:
            down, across = (-(-size // block) for size, block in zip(self.shape, self.form.block, strict=True))
            shapes, dtypes = (self.shape, (down, across)), ("F8_E4M3", self.form.scale_dtype)
        codes, scales = (
            OutputTensor(name=name, dtype=dtype, shape=shape, origin=self.origin)
            for name, dtype, shape in zip((self.form.codes, self.form.scales), dtypes, shapes, strict=True)
        )
        return codes, scales

    def encode(
        self, number: int, values: np.ndarray, uniform: np.ndarray | None, factor: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the flat codes and scales of a strip.

        Args:
            values: Of the strip, flat float32.
            uniform: As many numbers in [0, 1), where rounding is left to chance.
            factor: Of the inverse Hessian of the inputs, where errors are fed back.
        """
        start = number * self.strip
        before = self._before(number, start, start + values.size)
        with np.errstate(all="ignore"):
            if self.form.kind == "mxfp4":
                _, inputs, outputs = self.shape
                rows = np.ascontiguousarray(values.reshape(inputs, outputs).T)
                turned = None if uniform is None else uniform.reshape(inputs, outputs).T
                codes, scales = mxfp4_rows(rows, uniform=turned, factor=factor, before=before)
            else:
                rows = values.reshape(-1, self.shape[1])
                chance = None if uniform is None else uniform.reshape(rows.shape)
                kind = DTYPES[self.form.scale_dtype].numpy
                assert kind is not None
                width = min(self.form.block[1], self.shape[1])
                codes, scales = fp8_rows(rows, width, kind, uniform=chance, factor=factor, before=before)
        return codes.reshape(-1), scales.reshape(-1)

    def _before(self, number: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Return the strip of the model before: decoded, its codes, its scales."""
        if self.before is None or self.before.form is None:
            return None
        form, own = self.before.form, self.before.own
        decoded = self.before.read(start, stop).astype(np.float32)
        codes, scales = self.stored
        num_strips = -(-prod(self.shape) // self.strip)
        each = prod(scales.shape) // num_strips
        found = own.read(form.scales, number * each, (number + 1) * each)
        if self.form.kind == "mxfp4":
            _, inputs, outputs = self.shape
            size = prod(codes.shape[1:])
            packed = own.read(form.codes, number * size, (number + 1) * size).reshape(outputs, -1)
            return decoded.reshape(inputs, outputs).T, packed, found.reshape(outputs, -1)
        return (
            decoded.reshape(-1, self.shape[1]),
            own.read(form.codes, start, stop).view(np.uint8).reshape(-1, self.shape[1]),
            found,
        )
