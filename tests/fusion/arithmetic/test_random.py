"""Uniform words: uniform, and independent across tensors, seeds, lags and segments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sculpt.fusion.arithmetic.random import Key, random_words, tensor_key

N = 1 << 18
SIGNIFICANCE = 1e-6  # of each test; a good generator fails one of them in a million


def words(key: Key, start: int = 0, count: int = N) -> np.ndarray:
    return random_words(np.arange(start, start + count, dtype=np.int64), key)


def slow_word(index: int, key: Key) -> int:
    """The definition once more, in Python's unbounded integers."""

    def mix(x: int) -> int:
        x ^= x >> 16
        x = x * 0x21F0AAAD % 2**32
        x ^= x >> 15
        x = x * 0xD35A2D97 % 2**32
        return x ^ (x >> 15)

    return mix(mix((index + key.low) % 2**32) ^ key.high)


def test_words_follow_the_definition() -> None:
    key = tensor_key(7, "model.layers.0.mlp.up_proj.weight")
    indices = [0, 1, 2, 4095, 4096, 2**31, 2**32 - 1]
    found = random_words(np.array(indices, np.int64), key)
    assert found.tolist() == [slow_word(index, key) for index in indices]


def test_torch_draws_the_same_words() -> None:
    key = tensor_key(3, "a")
    assert random_words(torch.arange(5000), key).tolist() == words(key, 0, 5000).tolist()


def test_words_are_uniform() -> None:
    drawn = words(tensor_key(0, "weight"))
    for shift in (0, 8, 16, 24):  # every byte of the word
        counts = np.bincount((drawn >> shift) & 0xFF, minlength=256)
        assert stats.chisquare(counts).pvalue > SIGNIFICANCE
    assert stats.kstest(drawn / 2**32, "uniform").pvalue > SIGNIFICANCE


def test_no_word_repeats_within_a_segment() -> None:
    assert len(np.unique(words(tensor_key(0, "weight")))) == N


def test_small_keep_rates_are_met() -> None:
    drawn = words(tensor_key(0, "weight"), count=1 << 22)
    kept = int((drawn < 1e-4 * 2**32).sum())
    assert stats.binomtest(kept, len(drawn), 1e-4).pvalue > SIGNIFICANCE


def correlated(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two streams depend on each other: by a 16 × 16 table of their high bits, and bit by bit."""
    table = np.zeros((16, 16))
    np.add.at(table, (first >> 28, second >> 28), 1)
    if stats.chi2_contingency(table).pvalue < SIGNIFICANCE:
        return True
    agreement = [int((~(first ^ second) >> bit & 1).sum()) for bit in range(32)]
    return min(stats.binomtest(count, len(first), 0.5).pvalue for count in agreement) < SIGNIFICANCE / 32


@pytest.mark.parametrize("lag", [1, 2, 3, 64, 576, 2048, 4096, 65536])
def test_an_element_is_independent_of_its_neighbours(lag: int) -> None:
    drawn = words(tensor_key(0, "weight"), count=N + lag)
    assert not correlated(drawn[:-lag], drawn[lag:])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (tensor_key(0, "layers.0.weight"), tensor_key(0, "layers.1.weight")),
        (tensor_key(0, "layers.0.weight"), tensor_key(1, "layers.0.weight")),
        (tensor_key(0, "a"), tensor_key(0, "a", segment=1)),
        (tensor_key(0, "a"), tensor_key(0, "a", stream=1)),
        (Key(low=5, high=8), Key(low=5, high=9)),  # keys that differ in one bit only
        (Key(low=5, high=8), Key(low=6, high=9)),
    ],
)
def test_streams_are_independent(first: Key, second: Key) -> None:
    a, b = words(first), words(second)
    assert not correlated(a, b)
    for lag in (1, -1, 17):
        assert not correlated(a, np.roll(b, lag))


def test_keys_differ() -> None:
    keys = {
        tensor_key(seed, name, segment=segment, stream=stream)
        for seed in (0, 1, 10)
        for name in ("1", "0", "a", "a/0")
        for segment in (0, 1)
        for stream in (0, 1)
    }
    assert len(keys) == 3 * 4 * 2 * 2
