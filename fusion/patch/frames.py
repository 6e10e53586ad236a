"""The frames of a tensor: a directory of sizes and digests, then what is coded of each."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, final

import numpy as np
import xxhash

from ..checkpoint.bytes_of import as_bytes
from ..errors import CheckpointError
from .coder import encode
from .contexts import Hint, Plain
from .decoder import decode
from .forms import FRAME, form_of, num_words
from .recipe import SeededRecipe
from .room import room
from .scales import read, scaled_hint, written

ENTRY = struct.Struct("<I16s16s")  # bytes of code, digests of the base's and of the model's words
# What a frame holds: the model's words, or those that its recipe makes the model's of, or the model's where the
# recipe tells which of them differ, or the model's where rows and columns tell by how much.
MODEL, TUNED, HINTED, SCALED = 0, 1, 2, 3
PLAIN = Plain()
T = TypeVar("T")


class OtherBaseError(CheckpointError):
    """A tensor of the base is not the one that a patch was made from."""


@final
@dataclass(frozen=True, kw_only=True)
class CodedFrame:
    """One frame as it is written; no code where the model has the base's words."""

    code: bytes
    base: bytes
    model: bytes

    @property
    def scales(self) -> bool:
        """Whether all is there that a recipe made the model's words of."""
        return self.code[:1] in (b"", bytes([TUNED]))


def digest_of(words: np.ndarray) -> bytes:
    """Return the digest of words: XXH3 of 128 bits."""
    return xxhash.xxh3_128_digest(as_bytes(words))


def coded(
    base: np.ndarray,
    model: np.ndarray,
    dtype: str,
    start: int,
    recipe: SeededRecipe | None = None,
    tuned: np.ndarray | None = None,
    *,
    columns: int = 0,
) -> CodedFrame:
    """Return a frame of words.

    Args:
        base, model: Words, contiguous.
        start: The first word's place in the tensor.
        recipe: Tells which elements of the model can differ from the base.
        tuned: What the recipe makes the model of: the fine-tune's words, the base's where nothing is kept.
        columns: The size of the tensor's last axis, in words; 0 if it has none.
    """
    of_base, of_model = digest_of(base), digest_of(model)
    if of_base == of_model and (tuned is None or digest_of(tuned) == of_base):
        return CodedFrame(code=b"", base=of_base, model=of_model)
    form = form_of(dtype)

    def made(kind: int, words: np.ndarray, hint: Hint) -> CodedFrame:
        return CodedFrame(code=bytes([kind]) + encode(base, words, form, hint, start), base=of_base, model=of_model)

    def without_recipe() -> CodedFrame:
        hint = scaled_hint(base, model, dtype, start, columns)
        if hint is None:
            return made(MODEL, model, PLAIN)
        code = bytes([SCALED]) + written(hint) + encode(base, model, form, hint, start)
        return CodedFrame(code=code, base=of_base, model=of_model)

    if recipe is None:
        return without_recipe()
    made_of = room("made", len(model), model.dtype)
    if tuned is not None:
        recipe.rescale(base, tuned, dtype, start, None, made_of)
        if digest_of(made_of) == of_model:
            return made(TUNED, tuned, recipe.hint)
    hinted = made(HINTED, model, recipe.hint)
    decode(np.frombuffer(hinted.code, np.uint8)[1:], base, form, recipe.hint, start, made_of)
    return hinted if digest_of(made_of) == of_model else without_recipe()


def joined(frames: Sequence[CodedFrame]) -> list[bytes]:
    """Return the frames of a tensor as they are written, in pieces."""
    directory = b"".join(ENTRY.pack(len(frame.code), frame.base, frame.model) for frame in frames)
    return [directory, *(frame.code for frame in frames)]


def refuse_short(name: str, where: str, data: np.ndarray, dtype: str, num_elements: int) -> int:
    """Return how many frames a tensor has; raise CheckpointError where data are too short for its directory."""
    count = -(-num_words(dtype, num_elements) // FRAME)
    if len(data) < count * ENTRY.size:
        raise CheckpointError(f"`{name}` in `{where}` is damaged: its directory is cut off")
    return count


@final
class Frames:
    """What is coded of a tensor.

    Args:
        name: Of the tensor, and `where` of the patch, for sentences.
        data: Directory and code.

    Raises:
        CheckpointError: The directory does not fit the data.
    """

    def __init__(self, name: str, where: str, data: np.ndarray, dtype: str, num_elements: int) -> None:
        self.name, self._where, self.dtype = name, where, dtype
        self.num_words = num_words(dtype, num_elements)
        count = refuse_short(name, where, data, dtype, num_elements)
        self._data, at = data, count * ENTRY.size
        self.entries = [ENTRY.unpack_from(data.data, k * ENTRY.size) for k in range(count)]
        self._starts: list[int] = []
        for nbytes, _, _ in self.entries:
            self._starts.append(at)
            at += nbytes
        if at != len(data):
            raise self._damaged(f"its directory promises {at} bytes, and there are {len(data)}")

    def __len__(self) -> int:
        return len(self.entries)

    def span(self, k: int) -> tuple[int, int]:
        """Return the first word of a frame and the one after its last."""
        return k * FRAME, min((k + 1) * FRAME, self.num_words)

    def is_model(self, k: int, words: bytes) -> bool:
        """Return whether the bytes of words are the model's."""
        return xxhash.xxh3_128_digest(words) == self.entries[k][2]

    def decode(
        self,
        k: int,
        base: np.ndarray,
        recipe: SeededRecipe | None,
        strength: float | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the words of a frame.

        Args:
            base: The base's words, contiguous.
            strength: Of a recipe, in place of the one that it was written with.
            out: Room for them; without it what is returned may be `base` itself.

        Raises:
            OtherBaseError: The base's words are others.
            CheckpointError: The code is damaged.
        """
        nbytes, of_base, of_model = self.entries[k]
        if digest_of(base) != of_base:
            raise OtherBaseError(f"`{self.name}` is not the one that `{self._where}` was made from")
        if not nbytes:
            if of_model != of_base:
                raise self._damaged("a frame has no code")
            if out is None:
                return base
            out[:] = base
            return out
        at, form, start = self._starts[k], form_of(self.dtype), self.span(k)[0]
        kind, code = self._data[at], self._data[at + 1 : at + nbytes]
        if kind > SCALED or (kind in (TUNED, HINTED) and (recipe is None or start + len(base) > recipe.num_elements)):
            raise self._damaged(f"a frame is of the unknown kind {kind}")
        words = np.empty_like(base) if out is None else out
        coded = room("tuned", len(base), base.dtype) if kind == TUNED else words
        try:
            hint: Hint = PLAIN
            if kind == SCALED:
                hint, code = read(code, start, len(base))
            elif kind != MODEL and recipe is not None:
                hint = recipe.hint
            decode(code, base, form, hint, start, coded)
        except CheckpointError as error:
            raise self._damaged(error.message) from error
        if kind == TUNED:
            assert recipe is not None
            recipe.rescale(base, coded, self.dtype, start, None, words)
        if digest_of(words) != of_model:
            raise self._damaged("what is decoded has another digest")
        if kind == TUNED and strength is not None:
            assert recipe is not None
            recipe.rescale(base, coded, self.dtype, start, strength, words)
        return words

    def _damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"`{self.name}` in `{self._where}` is damaged: {why}")


def in_order(tasks: Iterable[Callable[[], T]], threads: int) -> Iterator[T]:
    """Yield what tasks return, in their order; a few more than there are threads are under way at any time."""
    waiting: list[Future[Any]] = []
    with ThreadPoolExecutor(threads) as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(task))
                if len(waiting) > 2 * threads:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
