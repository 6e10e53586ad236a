"""A patch file that is read: a safetensors file of bytes, whose contents say what they are."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
import xxhash

from ..checkpoint.safetensors_file import SafetensorsFile
from ..errors import CheckpointError
from .contents import (
    CONTENTS,
    FILE,
    FORMAT,
    HEADER,
    ROOT,
    TENSOR,
    VERSION,
    Contents,
    FileEntry,
    hex_digest,
    inflated,
    most_held,
)
from .frames import Frames, refuse_short
from .recipe import SeededRecipe, recipe_from


def is_patch(path: Path) -> bool:
    """Return whether a file is a patch that sculpt wrote."""
    try:
        return path.suffix == ".safetensors" and SafetensorsFile(path).metadata.get("format") == FORMAT
    except CheckpointError:
        return False


@final
class PatchFile:
    """An opened patch; only its contents are read yet.

    Attributes:
        contents: What it says of the model.

    Raises:
        CheckpointError: It is no patch, damaged, or of another version of the format.
    """

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            raise CheckpointError(
                f"`{path}` is a folder, and a patch is a file", hint="`sculpt pack` writes such files"
            )
        self.path = path
        self.file = SafetensorsFile(path)
        said = self.file.metadata
        if said.get("format") != FORMAT:
            raise CheckpointError(f"`{path}` is no patch", hint="`sculpt pack` writes such files")
        if said.get("version") != VERSION:
            raise CheckpointError(
                f"`{path}` is of version {said.get('version')}; this version of sculpt reads {VERSION}"
            )
        packed, text = self.entry(CONTENTS), said.get("contents_bytes", "")
        nbytes = int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else -1
        if hex_digest(packed) != said.get("contents_digest") or nbytes < 0:
            raise self.damaged(CONTENTS, "its digest is another")
        self._refuse_bomb(CONTENTS, nbytes)
        try:
            self.contents = Contents.unpack(b"".join(inflated(packed, nbytes)))
        except CheckpointError as error:
            raise self.damaged(CONTENTS, error.message) from error
        self._refuse_other_entries()
        for name, entry in self.contents.tensors.items():
            refuse_short(name, str(path), self.entry(TENSOR + name), entry.dtype, entry.num_elements)

    def _refuse_bomb(self, name: str, nbytes: int) -> None:
        most = most_held(len(self.file.content()))
        if nbytes > most:
            raise self.damaged(name, f"it claims {nbytes} bytes, and a patch of this size holds {most} at most")

    def _refuse_other_entries(self) -> None:
        contents = self.contents
        wanted = {CONTENTS, *(TENSOR + name for name in contents.tensors), *(HEADER + name for name in contents.shards)}
        wanted |= {FILE + name for name, entry in contents.files.items() if entry.stored}
        wanted |= contents.roots
        there = set(self.file.tensors)
        if there != wanted:
            odd = min(there ^ wanted)
            state = "lacks" if odd in wanted else "has no use for"
            raise CheckpointError(f"`{self.path}` {state} `{odd}`")

    def damaged(self, name: str, why: str) -> CheckpointError:
        """Return what is said of an entry that is not as it was written."""
        return CheckpointError(f"`{name}` in `{self.path}` is damaged: {why}")

    def entry(self, name: str) -> np.ndarray:
        """Return the bytes of an entry: a view of the file.

        Raises:
            CheckpointError: There is none, or it is none of bytes.
        """
        info = self.file.tensors.get(name)
        if info is None or info.dtype != "U8" or len(info.shape) != 1:
            raise CheckpointError(f"`{self.path}` holds no bytes called `{name}`")
        return self.file.read(name)

    def frames(self, name: str) -> Frames:
        """Return what is coded of a tensor.

        Raises:
            CheckpointError: It is damaged.
        """
        entry, data = self.contents.tensors[name], self.entry(TENSOR + name)
        if hex_digest(data) != entry.code:
            raise self.damaged(name, "its digest is another")
        return Frames(name, str(self.path), data, entry.dtype, entry.num_elements)

    def recipe(self, name: str) -> SeededRecipe | None:
        """Return the recipe of a tensor, if a seed tells which elements differ.

        Raises:
            CheckpointError: Its curvature is damaged.
        """
        entry = self.contents.tensors[name]
        if entry.recipe is None:
            return None
        try:
            return recipe_from(entry.recipe, entry.shape, entry.dtype, self._root)
        except ValueError as error:
            raise self.damaged(name, str(error)) from error

    def _root(self, name: str) -> bytes:
        found = self._roots.get(name)
        if found is None:
            data = self.entry(name)
            nbytes = int(data[:8].view("<u8")[0]) if len(data) >= 8 else -1
            self._refuse_bomb(name, nbytes + sum(map(len, self._roots.values())))
            try:
                if not (name.startswith(ROOT) and nbytes >= 0):
                    raise CheckpointError("it is no curvature")
                found = b"".join(inflated(data[8:], nbytes))
            except CheckpointError as error:
                raise self.damaged(name, error.message) from error
            if ROOT + hex_digest(found) != name:
                raise self.damaged(name, "its digest is another")
            self._roots[name] = found
        return found

    @cached_property
    def _roots(self) -> dict[str, bytes]:
        return {}

    def stored(self, prefix: str, name: str, entry: FileEntry) -> Iterator[bytes]:
        """Yield the bytes of a file or header that the patch holds, in pieces; the digest is checked at the end.

        Raises:
            CheckpointError: They are damaged.
        """
        digest = xxhash.xxh3_128()
        try:
            for piece in inflated(self.entry(prefix + name), entry.nbytes):
                digest.update(piece)
                yield piece
        except CheckpointError as error:
            raise self.damaged(name, error.message) from error
        if digest.hexdigest() != entry.digest:
            raise self.damaged(name, "its digest is another")

    def header(self, shard: str) -> bytes:
        """Return the header of a weight file, its length in front included."""
        entry = self.contents.shards[shard]
        self._refuse_bomb(shard, entry.nbytes)
        return b"".join(self.stored(HEADER, shard, entry))
