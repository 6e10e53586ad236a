"""The uniform number of an element: a function of seed, tensor name and flat index, and of nothing else.

Two rounds of a 32-bit finaliser (xor-shift and multiply; constants found by C. Wellons' and T. Ettinger's search for
low bias, https://github.com/skeeto/hash-prospector, public domain), keyed between and before the rounds by the two
halves of a 64-bit digest of (seed, name). One round would make every tensor's stream a shifted copy of every
other's. Only where two tensors' digests agree in their second half, one pair in 2³², are their streams shifts of one
another. Each further 2³² elements of a tensor get a key of their own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

WORD = 0xFFFFFFFF
SEGMENT = 1 << 32  # elements that share one key
MULTIPLIERS = (0x21F0AAAD, 0xD35A2D97)
SHIFTS = (16, 15, 15)


@dataclass(frozen=True, kw_only=True)
class Key:
    """Two 32-bit words that select one stream of 2³² draws."""

    low: int
    high: int


def tensor_key(seed: int, name: str, *, segment: int = 0, stream: int = 0) -> Key:
    """Return the key of elements `segment·2³² … (segment + 1)·2³² − 1` of a tensor.

    Args:
        stream: Which of several independent draws for the same tensor (one a tuned model).
    """
    text = f"{seed}/{stream}/{segment}/{name}".encode()
    digest = hashlib.blake2b(text, digest_size=8, person=b"sculpt-uniform").digest()
    return Key(low=int.from_bytes(digest[:4], "little"), high=int.from_bytes(digest[4:], "little"))


def _mix(x: Any) -> Any:
    """Return a bijective scrambling of 32-bit words held in int64."""
    x = x ^ (x >> SHIFTS[0])
    x = (x * MULTIPLIERS[0]) & WORD
    x = x ^ (x >> SHIFTS[1])
    x = (x * MULTIPLIERS[1]) & WORD
    return x ^ (x >> SHIFTS[2])


def random_words(indices: Any, key: Key) -> Any:
    """Return one uniform 32-bit word for each int64 index, as int64 in [0, 2³²).

    The products exceed 63 bits and wrap, which leaves their low 32 bits right.
    """
    x = _mix((indices + key.low) & WORD)
    return _mix(x ^ key.high)
