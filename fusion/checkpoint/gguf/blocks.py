"""The types that GGUF stores elements in, and how their blocks are decoded: to the bits of the `gguf` package.

The types that files are full of have kernels; `gguf.dequantize` decodes the others, which are few and small.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import final

import ml_dtypes
import numpy as np

from ...errors import CheckpointError, installs
from ...native import Kernel, address

PIECE = 1 << 16  # elements that are decoded at once where no kernel does it


@final
@dataclass(frozen=True, kw_only=True)
class BlockType:
    """One of llama.cpp's types.

    Attributes:
        number: In a file.
        elements, nbytes: Of one block.
        plain: What NumPy takes an element for, where a block is no more than one float.
    """

    number: int
    name: str
    elements: int
    nbytes: int
    plain: np.dtype | None = None


TYPES = {
    number: BlockType(number=number, name=name, elements=elements, nbytes=nbytes, plain=plain)
    for number, name, elements, nbytes, plain in (
        (0, "F32", 1, 4, np.dtype("f4")),
        (1, "F16", 1, 2, np.dtype("f2")),
        (30, "BF16", 1, 2, np.dtype(ml_dtypes.bfloat16)),
        *(
            (number, name, elements, nbytes, None)
            for number, name, elements, nbytes in (
                *((2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (6, "Q5_0", 32, 22), (7, "Q5_1", 32, 24)),
                *((8, "Q8_0", 32, 34), (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110), (12, "Q4_K", 256, 144)),
                *((13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210), (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74)),
                *((18, "IQ3_XXS", 256, 98), (19, "IQ1_S", 256, 50), (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110)),
                *((22, "IQ2_S", 256, 82), (23, "IQ4_XS", 256, 136), (29, "IQ1_M", 256, 56), (34, "TQ1_0", 256, 54)),
                *((35, "TQ2_0", 256, 66), (39, "MXFP4", 32, 17), (40, "NVFP4", 64, 36)),
            )
        ),
    )
}
# What llama.cpp computes with, or has given up, and no decoder reads.
UNREAD = {
    **{4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"},
    **{31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"},
    41: "Q1_0",
}
HOT = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
KERNELS = {name: Kernel("gguf", name.lower(), "B u") for name in HOT}


def decode(kind: BlockType, blocks: np.ndarray, out: np.ndarray) -> None:
    """Put the elements of blocks into `out`, in its dtype.

    Args:
        blocks: Their bytes, (blocks, bytes), contiguous.
        out: (blocks, elements), contiguous; float32, bfloat16 or float16.
    """
    if kind.plain is not None:
        with np.errstate(all="ignore"):
            out[...] = blocks.reshape(-1).view(kind.plain).reshape(out.shape)
        return
    kernel = KERNELS.get(kind.name)
    if kernel is not None:
        if len(blocks):
            kernel((out,), address(blocks), len(blocks))
        return
    dequantize, number = _library(kind)
    step = max(1, PIECE // kind.elements)
    with np.errstate(all="ignore"):
        for first in range(0, len(blocks), step):
            out[first : first + step] = dequantize(blocks[first : first + step], number)


def _library(kind: BlockType):
    try:
        gguf = import_module("gguf")
        number = gguf.GGMLQuantizationType(kind.number)
        gguf.quants.dequantize(np.zeros((1, kind.nbytes), np.uint8), number)
    except ImportError as error:
        raise needs_gguf(f"blocks of {kind.name} are decoded by the `gguf` package, which is not installed") from error
    except (ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"the `gguf` package that is installed does not decode {kind.name}", hint="a newer `gguf` package may"
        ) from error
    return gguf.quants.dequantize, number


def needs_gguf(message: str) -> CheckpointError:
    """Return the refusal of what takes a package that is not installed."""
    return CheckpointError(message, hint=installs("gguf"))
