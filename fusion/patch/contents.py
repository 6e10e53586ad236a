"""What a patch says of itself: the model that it makes, tensor by tensor and file by file."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import PurePosixPath
from typing import Any, Literal, final

import numpy as np
import xxhash

from ..checkpoint.foreign import PATCH_FORMAT
from ..checkpoint.json_file import checked
from ..dtypes import DTYPES
from ..errors import CheckpointError
from .recipe import RecipeEntry

FORMAT, VERSION = PATCH_FORMAT, "1"
# Entries of the safetensors file.
CONTENTS, TENSOR, ROOT, HEADER, FILE = "contents", "tensor/", "root/", "header/", "file/"
PIECE = 1 << 20
# A tensor takes over a hundred bytes of a patch, and a few hundred of its contents and of a header.
HELD, HELD_TIMES = 1 << 24, 16
Strength = Literal["scales", "stays", "fixed"]
_DIGEST = re.compile(r"[0-9a-f]{32}|")


def hex_digest(data: Any) -> str:
    """Return the digest of bytes: XXH3 of 128 bits, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(data)


@final
@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor of the model.

    Attributes:
        dtype: As stored, a code of safetensors.
        base: The base's tensor that it is compared with; None where it is compared with zeros.
        seen: Digest of the base's first, middle and last 4 KiB; empty without a base.
        changed: Whether it differs from what it is compared with.
        code: Digest of the tensor's entry in the patch.
        recipe: What made it, where a seed tells which elements differ.
        strength: What another strength makes of it: `scales`, for what it is made of is there; `stays`, for a fuse
            copies it; or `fixed`, for it is not known.
    """

    dtype: str
    shape: tuple[int, ...]
    base: str | None
    seen: str
    changed: bool
    code: str
    recipe: RecipeEntry | None = None
    strength: Strength = "fixed"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES or any(size < 0 for size in self.shape):
            raise ValueError(f"no tensor is {self.dtype} {list(self.shape)}")
        if prod(self.shape) * DTYPES[self.dtype].bits % 8:
            raise ValueError(f"{self.dtype} {list(self.shape)} is no whole number of bytes")
        if not (_DIGEST.fullmatch(self.seen) and _DIGEST.fullmatch(self.code)):
            raise ValueError("no digest")

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return prod(self.shape)


@final
@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file beside the weights: the base's of the same name where `stored` is False, else one that the patch holds."""

    nbytes: int
    digest: str
    stored: bool


@final
@dataclass(frozen=True, kw_only=True)
class Contents:
    """The model that a patch makes of its base.

    Attributes:
        base: What the base is called.
        made_by: The command, and of a fuse its method.
        strength: Of δ in the model: 1 of a fine-tune itself; None where it is not one for all tensors.
        shards: The weight files, each with the size and digest of its header; none where they are laid out anew.
        tensors: By name, in the order of the model's files.
        files: By name within the model's folder.
    """

    base: str
    made_by: str
    strength: float | None = None
    shards: Mapping[str, FileEntry] = field(default_factory=dict)
    tensors: Mapping[str, TensorEntry]
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.files, *self.shards):
            # A patch comes from others: no file outside the folder is written for it.
            place = PurePosixPath(name)
            is_long = any(len(part.encode("utf-8", "surrogatepass")) > 200 for part in place.parts)
            odd = place.is_absolute() or not place.parts or ".." in place.parts or is_long or "\0" in name
            if odd or place.as_posix() != name or "\\" in name:
                raise ValueError(f"`{name}` is not the name of a file in the folder")
        if any("/" in name or not name.endswith(".safetensors") for name in self.shards):
            raise ValueError("that is not the name of a weight file")

    @property
    def roots(self) -> set[str]:
        """The entries that hold `sqrt(H)`."""
        recipes = (entry.recipe for entry in self.tensors.values())
        return {recipe.root.entry for recipe in recipes if recipe is not None and recipe.root is not None}

    def pack(self) -> bytes:
        """Return the contents as they are written, before they are compressed."""
        return json.dumps(asdict(self), sort_keys=False, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def unpack(cls, text: bytes) -> Contents:
        """Return the contents.

        Raises:
            CheckpointError: They are malformed.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"they are not JSON: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError("they are not a JSON object")
        return checked(cls, content)


def deflated(data: bytes) -> bytes:
    """Return bytes as zlib compresses them: the same on every machine with the same zlib, and readable with any."""
    return zlib.compress(data, 9)


def most_held(file_bytes: int) -> int:
    """Return how many bytes a patch of a size may make of what has to be in memory as a whole: no bomb does it."""
    return HELD + HELD_TIMES * file_bytes


def inflated(data: np.ndarray, nbytes: int) -> Iterator[bytes]:
    """Yield what `deflated` was given, in pieces.

    Raises:
        CheckpointError: It is damaged, or not of this many bytes.
    """
    stream, left = zlib.decompressobj(), nbytes
    try:
        for start in range(0, len(data), PIECE):
            rest = data[start : start + PIECE].tobytes()
            while True:
                piece = stream.decompress(rest, min(PIECE, left + 1))
                left -= len(piece)
                if left < 0:
                    raise CheckpointError(f"it holds more than {nbytes} bytes")
                rest = stream.unconsumed_tail
                if not piece:
                    break
                yield piece
        if left or not stream.eof:
            raise CheckpointError(f"it does not hold {nbytes} bytes")
    except zlib.error as error:
        raise CheckpointError(f"{error}") from error
