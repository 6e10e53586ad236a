"""What is known of a tensor before any of it is read."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import NamedTuple

from ..dtypes import DTYPES, DType


class TensorInfo(NamedTuple):
    """Name, dtypes and shape of one tensor of a source. A named tuple: models have 100,000, and it is quickly made.

    Attributes:
        dtype: safetensors code, such as `"BF16"`, of the elements that `read` gives: what is computed with.
        stored: Code of the dtype that the model keeps the tensor in, which an output keeps too. The two differ where a
            source computes the tensor, such as an adapter's float32 sum over a base in bfloat16.
        file: The weight file that it lies in, or that its base's tensor lies in; None for a tensor in memory.
    """

    name: str
    dtype: str
    stored: str
    shape: tuple[int, ...]
    file: Path | None

    @property
    def num_elements(self) -> int:
        """Product of the shape; 1 for a scalar."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the model keeps it in."""
        return self.num_elements * DTYPES[self.stored].bits // 8

    @property
    def kind(self) -> DType:
        """The description of the elements that `read` gives."""
        return DTYPES[self.dtype]
