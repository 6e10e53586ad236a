"""What a header says of a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..dtypes import DTYPES, DType


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Name, dtype, shape and place of one stored tensor.

    Attributes:
        dtype: safetensors code, such as `"BF16"`.
        file: The file that holds it.
        offset: First byte in `file`; for torch files the order of storage only.
        nbytes: Stored bytes.
        derived: An adapter makes it from the base: its dtype is that of the arithmetic, whatever the base stores.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
    derived: bool = False

    @property
    def num_elements(self) -> int:
        """Product of the shape; 1 for a scalar."""
        return prod(self.shape)

    @property
    def stored(self) -> DType:
        """The dtype's description."""
        return DTYPES[self.dtype]
