"""Vocabularies that differ, aligned row by row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sculpt.fusion.checkpoint import Checkpoint
from sculpt.fusion.errors import MethodError
from sculpt.fusion.recipe.recipe import ModelName, TokenSource
from sculpt.fusion.recipe.vocabulary import Member, align_vocabularies, aligned

Make = Callable[..., Path]
WIDTH = 4
EMBEDDING = "model.embed_tokens.weight"
NAMES = [ModelName(path=name) for name in ("base", "a", "b")]
TOKENS = [{"x": 0, "y": 1, "both": 2}, {"x": 0, "new": 1, "y": 2}, {"y": 0, "both": 1, "lonely": 2}]


@pytest.fixture
def members(make_checkpoint: Make) -> list[Member]:
    found = []
    for k, (name, tokens) in enumerate(zip(NAMES, TOKENS, strict=True)):
        rows = len(tokens) + (2 if k == 0 else 0)  # the base is padded
        tensors = {
            EMBEDDING: np.arange(rows * WIDTH, dtype=np.float32).reshape(rows, WIDTH) + 100 * k,
            "model.norm.weight": np.ones(WIDTH, np.float32),
        }
        folder = make_checkpoint(name.path, tensors, config={"vocab_size": rows, "tie_word_embeddings": True})
        found.append(Member(label=name.path, checkpoint=Checkpoint(folder), tokens=tokens))
    return found


def embeddings(members: list[Member], output: dict[str, int], **options: object) -> list[np.ndarray]:
    defaults: dict = {"base": 0, "sources": {}, "pad_to_multiple_of": None, "like": None}
    labels = {name: k for k, name in enumerate(NAMES)}
    alignment = align_vocabularies(members, output, labels=labels, **{**defaults, **options})
    views = aligned(members, alignment)
    for view, member in zip(views, members, strict=True):
        assert view.fingerprint == member.checkpoint.fingerprint
        assert view.tensors["model.norm.weight"] == member.checkpoint.tensors["model.norm.weight"]
    return [view.read(EMBEDDING).reshape(view.tensors[EMBEDDING].shape) for view in views]


UNION = {"x": 0, "y": 1, "both": 2, "new": 3, "lonely": 4}


def own(member: int, row: int) -> np.ndarray:
    return np.arange(WIDTH) + row * WIDTH + 100 * member


def test_a_model_keeps_its_own_and_is_given_what_it_lacks(members: list[Member]) -> None:
    base, a, b = embeddings(members, UNION)
    np.testing.assert_array_equal(base, [own(0, 0), own(0, 1), own(0, 2), own(1, 1), own(2, 2)])
    np.testing.assert_array_equal(a, [own(1, 0), own(1, 2), own(0, 2), own(1, 1), own(2, 2)])
    np.testing.assert_array_equal(b, [own(0, 0), own(2, 0), own(2, 1), own(1, 1), own(2, 2)])


def test_without_a_base_it_is_given_the_mean_of_those_that_have_it(members: list[Member]) -> None:
    _, a, b = embeddings(members, UNION, base=None)
    np.testing.assert_array_equal(a[2], (own(0, 2) + own(2, 1)) / 2)
    np.testing.assert_array_equal(b[0], (own(0, 0) + own(1, 0)) / 2)


def test_padding_of_the_tokenizers_own_model_is_kept(members: list[Member]) -> None:
    base, a, _ = embeddings(members, TOKENS[0], like=0)
    assert len(base) == len(a) == 5
    np.testing.assert_array_equal(base[3:], [own(0, 3), own(0, 4)])


def test_padding_that_is_asked_for_is_the_mean_of_all_tokens(members: list[Member]) -> None:
    base, _, b = embeddings(members, UNION, pad_to_multiple_of=4)
    assert base.shape == (8, WIDTH)
    for found in (base, b):
        np.testing.assert_allclose(found[5:], np.broadcast_to(found[:5].mean(0), (3, WIDTH)))


def test_tokens_may_be_told_where_they_come_from(members: list[Member]) -> None:
    sources = {
        "new": TokenSource(),
        "lonely": TokenSource(model=NAMES[1], token="x", force=True),
        "y": TokenSource(model=NAMES[2], token=1),
    }
    base, a, b = embeddings(members, UNION, sources=sources)
    np.testing.assert_array_equal(base[3], np.zeros(WIDTH))
    np.testing.assert_array_equal(a[3], own(1, 1))
    for found in (base, a, b):
        np.testing.assert_array_equal(found[4], own(1, 0))
    np.testing.assert_array_equal(base[1], own(0, 1))


def test_any_piece_of_the_aligned_tensor_can_be_read(members: list[Member]) -> None:
    labels = {name: k for k, name in enumerate(NAMES)}
    alignment = align_vocabularies(
        members, UNION, base=0, sources={}, labels=labels, pad_to_multiple_of=None, like=None
    )
    for view in aligned(members, alignment):
        whole = view.read(EMBEDDING)
        for start in range(len(whole) + 1):
            for stop in range(start, len(whole) + 1):
                np.testing.assert_array_equal(view.read(EMBEDDING, start, stop), whole[start:stop])


def test_a_token_that_its_source_lacks_is_refused(members: list[Member]) -> None:
    with pytest.raises(MethodError, match="`b` has no token `x`, which `x` should come from"):
        embeddings(members, UNION, sources={"x": TokenSource(model=NAMES[2])})
    with pytest.raises(MethodError, match="is not part of the merge"):
        embeddings(members, UNION, sources={"x": TokenSource(model=ModelName(path="other"))})
