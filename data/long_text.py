"""Running text of any length to token ids, a piece at a time: a tokenizer keeps hundreds of bytes a token."""

from __future__ import annotations

from array import array
from typing import Any

PIECE = 1 << 16  # characters
OVERLAP = 1 << 10


def ids_of_long_text(tokenizer: Any, text: str) -> array[int]:
    """Return the token ids of a text, special tokens around it included, as the tokenizer makes them of the whole.

    Pieces overlap, and are joined where both have a token end, in the middle of the overlap; what stands there has then
    been tokenised with half of the overlap around it on either side. A tokenizer that does not say where tokens lie
    gets the text whole.
    """
    if len(text) <= 2 * PIECE or not getattr(tokenizer, "is_fast", False):
        return array("i", tokenizer(text)["input_ids"])
    found = array("i")
    ends: list[int] = []  # of the tokens of the last overlap, in the whole text
    start = 0
    while start < len(text):
        stop = min(len(text), start + PIECE)
        encoded = tokenizer(text[start:stop], return_offsets_mapping=True)
        ids, own = array("i", encoded["input_ids"]), [end + start if end else 0 for _, end in encoded["offset_mapping"]]
        if found:
            seam = _seam(ends, own, start + OVERLAP // 2)
            if seam is None:
                return array("i", tokenizer(text)["input_ids"])
            found = found[: len(found) - seam[0]]
            ids, own = ids[seam[1] :], own[seam[1] :]
        found += ids
        ends = own
        if stop == len(text):
            break
        start = stop - OVERLAP
    return found


def _seam(before: list[int], after: list[int], middle: int) -> tuple[int, int] | None:
    """Return how many tokens to take from the end of one piece and from the beginning of the next.

    They are joined after the last token that ends before the middle of the overlap in both.
    """
    common = {end for end in after if end and end <= middle}.intersection(before)
    if not common:
        return None
    place = max(common)
    left = max(k for k, end in enumerate(before) if end == place)
    right = max(k for k, end in enumerate(after) if end == place)
    return len(before) - left - 1, right + 1
