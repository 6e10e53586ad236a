"""What measuring a model will take, in memory and time: by headers and a look at the data. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np

from ..data.rows import Rows, open_rows, texts_of_set
from ..fusion.checkpoint import Source, TensorInfo
from ..fusion.names import block_of
from ..fusion.run.calibration import GENERAL, SampleRun

LIBRARIES_BYTES = 245_000_000  # what torch and transformers add to a process, measured
RUN_BYTES = 60_000_000  # arenas and arithmetic of a forward, measured
FLOAT = 4  # bytes: a CPU computes in float32
LIBRARIES_SECONDS = 12.0  # to import them and to build a model
CHARACTERS = 4  # a token
LOOKED_AT = 32  # rows
TRIES = 5
AT_ONCE = 6  # arrays as wide as the widest inputs that a block has at once: of a gated MLP, and copies that are summed
USED = 0.8  # of the speed of a large product, that a forward reaches
WRITING = 2  # how much longer a token takes that is written than one that is read
COMPARED = 4000  # tokens, of the general set that a fused model and its base are compared on
CHATS = 0.3  # of the general set's tokens, those of answers that the model writes


@dataclass(frozen=True, kw_only=True)
class Samples:
    """How much data a model will see.

    Attributes:
        num_rows: That there are.
        longest: Tokens of the longest sample.
        together: Tokens of a batch, at most.
        written: Of `num_tokens`, those that the model writes itself.
    """

    name: str
    num_rows: int
    num_tokens: int
    longest: int
    together: int = 0
    written: int = 0


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What one model takes that is run block by block.

    Attributes:
        held: Of memory until the run is over: weights, activations and sums.
        logits: And while its last block runs.
        libraries: Of the process, whatever the model.
    """

    held: int
    logits: int
    libraries: int = LIBRARIES_BYTES + RUN_BYTES
    seconds: float


def samples_of(data: Any, how: SampleRun, source: Source) -> Samples:
    """Return how much data a run will see, by a look at some rows.

    Raises:
        DataError: They cannot be read.
    """
    rows = texts_of_set() if str(data) == GENERAL else open_rows(data, how.media, fields=how.fields)
    longest = min(how.max_length, _text(source).get("max_position_embeddings") or how.max_length)
    if str(data) == GENERAL or rows.documents:
        total = how.samples * longest
        writes = str(data) == GENERAL and _can_chat(source)
        return Samples(
            name=rows.name,
            num_rows=len(rows),
            num_tokens=total,
            longest=longest,
            together=_together(how, total, longest),
            written=int(CHATS * total * writes),
        )
    lengths = [min(longest, _characters(rows, number) // CHARACTERS + 1) for number in range(min(len(rows), LOOKED_AT))]
    count = min(how.samples, len(rows))
    mean = sum(lengths) / max(1, len(lengths))
    total, longest = int(count * mean), max(lengths, default=1)
    together = _together(how, total, longest)
    return Samples(name=rows.name, num_rows=len(rows), num_tokens=total, longest=longest, together=together)


def _together(how: SampleRun, total: int, longest: int) -> int:
    by_samples = total if how.batch_size is None else how.batch_size * longest
    return min(total, by_samples, max(longest, how.most_tokens or total))


def _characters(rows: Rows, number: int) -> int:
    rows.row(number)  # refuses what is no sample
    return len(str(rows.read(number)))


def forecast(source: Source, samples: Samples, *, full: bool, memory: int | None) -> Forecast:
    """Return what measuring a model takes on a CPU.

    Args:
        full: Whether Σ x·xᵀ of every input is kept.
        memory: What activations may take; None is half of what is free.
    """
    text, blocks = _text(source), _blocks(source)
    hidden, vocabulary = text.get("hidden_size") or 0, text.get("vocab_size") or 0
    is_tied = bool((source.config or {}).get("tie_word_embeddings", text.get("tie_word_embeddings")))
    numbered = {name: own for name, own in blocks.items() if name[-1:].isdigit()}
    largest = max(map(sum, (numbered or blocks).values()), default=0)
    outside = [sum(own) for name, own in blocks.items() if name not in numbered]
    pinned = max(outside, default=0) if is_tied else 0
    weights = max(pinned + largest, *outside, 0) * FLOAT
    activations = 2 * samples.num_tokens * hidden * FLOAT
    if memory is not None:
        activations = min(activations, memory)
    widest = max((width for widths in _inputs(source).values() for width in widths), default=0)
    arithmetic = AT_ONCE * samples.together * widest * FLOAT
    logits = min(samples.longest, samples.num_tokens) * vocabulary * FLOAT
    products = sum(width**2 for widths in _inputs(source).values() for width in widths) if full else 0
    grams = 8 * max((sum(w**2 for w in widths) for widths in _inputs(source).values()), default=0) if full else 0
    work = 2 * num_elements(source) * (samples.num_tokens + WRITING * samples.written) + products * samples.num_tokens
    return Forecast(
        held=weights + activations + arithmetic + 2 * grams,
        logits=logits,
        seconds=LIBRARIES_SECONDS + work / (USED * speed()),
    )


def matrix_bytes(infos: Iterable[TensorInfo]) -> int:
    """Return the bytes of Σ x·xᵀ of some tensors, at least: those of one block and width may see the same inputs."""
    matrices = {(block_of(info.name), info.shape[:-2], info.shape[-1]) for info in infos if len(info.shape) > 1}
    return sum(4 * prod(stack) * width**2 for _, stack, width in matrices)


def compared(source: Source) -> int:
    """Return the bytes that a model and another like it take while they are compared, each run block by block."""
    read = Samples(name="", num_rows=0, num_tokens=COMPARED, longest=0)
    return 2 * forecast(source, read, full=False, memory=None).held


def num_elements(source: Source) -> int:
    """Return how many parameters a model has."""
    return sum(info.num_elements for info in source.tensors.values())


def whole_model(source: Source) -> int:
    """Return the bytes of a model that is loaded whole, in float32."""
    return FLOAT * num_elements(source)


def seconds_to_read(source: Source, num_tokens: int) -> float:
    """Return how long a model takes to read so many tokens."""
    return 2 * num_elements(source) * num_tokens / (USED * speed())


@cache
def speed() -> float:
    """Return this machine's operations a second: of products of float32 matrices, the best of a few."""
    size = 768
    matrix, times = np.ones((size, size), np.float32), []
    for _ in range(TRIES):
        start = time.perf_counter()
        np.matmul(matrix, matrix)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / max(min(times), 1e-6)


def _text(source: Source) -> Mapping[str, Any]:
    config = source.config or {}
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _can_chat(source: Source) -> bool:
    folder = source.folder
    return folder is not None and (folder / "chat_template.jinja").exists()


def _blocks(source: Source) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for info in source.tensors.values():
        found.setdefault(block_of(info.name), []).append(prod(info.shape))
    return found


def _inputs(source: Source) -> dict[str, Collection[int]]:
    """Return the widths of each block's inputs; tensors of one width are taken to share theirs, but for one."""
    found: dict[str, list[int]] = {}
    for info in source.tensors.values():
        if len(info.shape) > 1 and block_of(info.name)[-1:].isdigit():
            found.setdefault(block_of(info.name), []).append(info.shape[-1])
    return {block: [w for w in set(widths) for _ in range(min(3, widths.count(w)))] for block, widths in found.items()}
