"""Models with different vocabularies: every token gets the embedding that mergekit gives it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .test_agreement import merge
from .tiny import CONFIG, llama, moved, run_mergekit, tensors_of, with_paths, write

COMMON = ["<unk>", "<s>", "</s>", *(f"word{i}" for i in range(20))]
TOKENS = {
    "base": [*COMMON, "base1", "both1"],
    "a": [*COMMON, "new1", "new2", "both1"],
    "b": [*COMMON[:5], "other", *COMMON[5:], "new2", "lonely"],
}
VOCABULARY_TENSORS = ("model.embed_tokens.weight", "lm_head.weight")
RECIPES: dict[str, dict[str, Any]] = {
    "union": {"tokenizer_source": "union"},
    "base": {"tokenizer_source": "base"},
    "union without base": {"tokenizer": {"source": "union"}, "base_model": None, "merge_method": "linear"},
    "tokens": {
        "tokenizer": {
            "source": "union",
            "tokens": {
                "new1": {"source": {"kind": "zero"}},
                "lonely": {"source": {"kind": "model_token", "model": "a", "token": "word3"}, "force": True},
                "<extra>": {"source": {"kind": "model_token", "model": "b", "token_id": 7}},
            },
        }
    },
    "padded": {"tokenizer": {"source": "union", "pad_to_multiple_of": 64}},
}


def tokenizer_of(tokens: list[str]) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    model = WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>", bos_token="<s>")


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the checkpoints base, a and b, each with a vocabulary of its own."""
    folder = tmp_path_factory.mktemp("vocabularies")
    for seed, (name, tokens) in enumerate(TOKENS.items()):
        tensors = moved(llama(0), seed) if seed else llama(0)
        for vocabulary in VOCABULARY_TENSORS:
            tensors[vocabulary] = tensors[vocabulary][: len(tokens)].copy()
        write(folder / name, tensors, {**CONFIG, "vocab_size": len(tokens)})
        tokenizer_of(tokens).save_pretrained(folder / name)
    return folder


def document(name: str, folder: Path) -> dict[str, Any]:
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": m, "parameters": {"weight": w}} for m, w in (("a", 0.7), ("b", 0.4))],
        "dtype": "float32",
        **RECIPES[name],
    }
    return with_paths({key: value for key, value in recipe.items() if value is not None}, folder)


@pytest.fixture(scope="session")
def theirs(python: Path, vocabularies: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    recipes = {name: document(name, vocabularies) for name in RECIPES}
    return run_mergekit(python, recipes, tmp_path_factory.mktemp("mergekit"))


def tokens_of(folder: Path) -> dict[str, int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder).get_vocab()


@pytest.mark.parametrize("name", RECIPES)
def test_every_token_has_the_embedding_that_mergekit_gives_it(
    name: str, theirs: dict[str, Path], vocabularies: Path, tmp_path: Path
) -> None:
    ours, expected = merge(document(name, vocabularies), tmp_path), tensors_of(theirs[name])
    our_tokens, their_tokens = tokens_of(tmp_path / "out"), tokens_of(theirs[name])
    assert our_tokens.keys() == their_tokens.keys()
    for tensor in VOCABULARY_TENSORS:
        assert ours[tensor].shape == expected[tensor].shape
        for token, row in our_tokens.items():
            np.testing.assert_allclose(
                ours[tensor][row], expected[tensor][their_tokens[token]], rtol=1e-5, atol=1e-6, err_msg=token
            )
        padding = np.setdiff1d(np.arange(len(ours[tensor])), list(our_tokens.values()))
        np.testing.assert_allclose(ours[tensor][padding], expected[tensor][padding], rtol=1e-4, atol=1e-5)
    for tensor in expected.keys() - set(VOCABULARY_TENSORS):
        np.testing.assert_allclose(ours[tensor], expected[tensor], rtol=1e-5, atol=1e-6)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == len(ours["lm_head.weight"])
