"""Vocabularies that were resized, in checkpoints and in adapters, as people of other projects have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sculpt
from sculpt.api import prepare_fuse
from sculpt.fusion.errors import CheckpointError, MismatchError
from sculpt.fusion.recipe.prepare import prepare_recipe
from sculpt.fusion.recipe.read import read_recipe
from sculpt.fusion.run.fuse import execute
from sculpt.fusion.run.untie import untie

Tensors = dict[str, np.ndarray]
Make = Callable[..., Path]
Read = Callable[[Path], Tensors]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def model(make_checkpoint: Make, tmp_path: Path) -> Callable[..., Path]:
    """Return what writes a model with so many rows, whose tokenizer has the tokens that are given."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    def make(name: str, tokens: str, rows: int | None = None, seed: int = 0) -> Path:
        words, rng = tokens.split(), np.random.default_rng(seed)
        shape = (rows or len(words), 4)
        tensors = {key: rng.standard_normal(shape).astype(np.float32) for key in (EMBED, HEAD)}
        folder = make_checkpoint(name, tensors, config={"vocab_size": shape[0], "tie_word_embeddings": False})
        inner = Tokenizer(WordLevel({word: k for k, word in enumerate(words)}, unk_token="a"))
        PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(folder)
        return folder

    return make


def vocab_size(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text())["vocab_size"]


def test_added_tokens_of_a_recipes_second_model_are_not_dropped(model: Callable[..., Path], tmp_path: Path) -> None:
    """mergekit#489, open-instruct#124: 74 rows, not a word. Aligned where the recipe or the caller asks for it."""
    model("one", "a b c"), model("two", "a b c <|im_start|> <|im_end|>", seed=1)
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: one}, {model: two}]\n"
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = read_recipe(str(tmp_path / "recipe.yaml"))
    with pytest.raises(MismatchError, match=r"`\S+` is \[3, 4\] in the base and \[5, 4\] in `.*two`") as caught:
        prepare_recipe(recipe, output=tmp_path / "out", near=tmp_path)
    assert ("tokenizer", "union") in [(way.option, way.value) for way in caught.value.ways]
    settings = sculpt.Settings(tokenizer="union", config_from="base")
    execute(prepare_recipe(recipe, output=tmp_path / "out", near=tmp_path, settings=settings))
    assert vocab_size(tmp_path / "out") == 5


@pytest.mark.parametrize("grown", [("two",), ("one", "two")], ids=["grown by one", "grown by all"])
def test_several_models_are_aligned_by_their_tokenizers(
    grown: tuple[str, ...], model: Callable[..., Path], tmp_path: Path, tensors_of: Read
) -> None:
    """mergekit's --unsafe-truncate-embeddings would cut them: TIES of a base, a fine-tune and a grown one."""
    base = model("base", "a b c")
    tuned = [
        model(name, "a b c" + (f" <{name}>" if name in grown else ""), seed=k)
        for k, name in enumerate(("one", "two"), 1)
    ]
    method = sculpt.TaskArithmetic(weights=(0.5, 0.25))
    with pytest.raises(MismatchError) as caught:
        prepare_fuse(base, tuned, output=tmp_path / "out", method=method)
    assert ("tokenizer", "union") in [(way.option, way.value) for way in caught.value.ways]
    sculpt.fuse(base, tuned, output=tmp_path / "out", method=method, settings=sculpt.Settings(tokenizer="union"))
    b, one, two = (tensors_of(folder)[EMBED] for folder in (base, *tuned))
    found = tensors_of(tmp_path / "out")[EMBED]
    expected = b + 0.5 * (one[:3] - b) + 0.25 * (two[:3] - b)
    # A token that one model has alone keeps its row.
    expected = np.concatenate([expected, *(rows[3:] for rows in (one, two))])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert vocab_size(tmp_path / "out") == 3 + len(grown)


def test_a_vocabulary_that_was_shrunk_to_its_tokenizer_is_fused_where_common(
    model: Callable[..., Path], tmp_path: Path, tensors_of: Read
) -> None:
    """axolotl#2277, autotrain#790: resize_token_embeddings(len(tokenizer)) of a padded base."""
    base, tuned = model("base", "a b c", rows=8), model("tuned", "a b c", rows=5, seed=1)
    manifest = sculpt.fuse(base, tuned, output=tmp_path / "out", method=sculpt.TaskArithmetic(scale=0.5))
    b, t = tensors_of(base)[EMBED], tensors_of(tuned)[EMBED]
    np.testing.assert_allclose(tensors_of(tmp_path / "out")[EMBED], (b[:5] + t) / 2, rtol=1e-5, atol=1e-7)
    assert manifest.notes == tuple(
        f"3 rows of `{name}` of `{base.name}` are left out: the output has fewer" for name in (HEAD, EMBED)
    )
    settings = sculpt.Settings(config_from="base")
    sculpt.fuse(base, tuned, output=tmp_path / "kept", method=sculpt.Dare(sparsity=0.5), settings=settings)
    np.testing.assert_array_equal(tensors_of(tmp_path / "kept")[EMBED][5:], b[5:])


@pytest.mark.parametrize("method", [sculpt.Ties(), sculpt.Tailor(compensation="none"), sculpt.Slerp(t=0.3)])
def test_every_kind_of_method_sees_the_common_rows_alone(
    method: sculpt.Method, model: Callable[..., Path], tmp_path: Path, tensors_of: Read
) -> None:
    base, tuned = model("base", "a b c", rows=8), model("tuned", "a b c", rows=5, seed=1)
    sculpt.fuse(base, tuned, output=tmp_path / "out", method=method, calibration=False)
    alone = sculpt.apply(method, {EMBED: tensors_of(base)[EMBED][:5]}, {EMBED: tensors_of(tuned)[EMBED]})
    np.testing.assert_array_equal(tensors_of(tmp_path / "out")[EMBED], alone[EMBED])


def test_a_vocabulary_padded_to_a_multiple_keeps_its_padding(
    model: Callable[..., Path], tmp_path: Path, tensors_of: Read
) -> None:
    base, tuned = model("base", "a b c"), model("tuned", "a b c <x>", rows=8, seed=1)
    sculpt.fuse(base, tuned, output=tmp_path / "out", method=sculpt.TaskArithmetic(scale=0.5))
    np.testing.assert_array_equal(tensors_of(tmp_path / "out")[EMBED][3:], tensors_of(tuned)[EMBED][3:])


def test_other_tokens_in_the_same_rows_are_told(model: Callable[..., Path], tmp_path: Path) -> None:
    """Models that added tokens apart: of one size, so that nothing else shows it."""
    base, tuned = model("base", "a b c"), [model("one", "a b <x>", seed=1), model("two", "a <y> <x>", seed=2)]
    notes = prepare_fuse(base, tuned, output=tmp_path / "out", method=sculpt.TaskArithmetic()).plan.notes
    assert notes == (
        f"row 2 of the vocabulary is `c` in `{base}` and `<x>` in `{tuned[0]}`: "
        "`tokenizer: union` aligns rows by their tokens",
        f"row 1 of the vocabulary is `b` in `{base}` and `<y>` in `{tuned[1]}`, and so on in 2 rows: "
        "`tokenizer: union` aligns rows by their tokens",
    )
    settings = sculpt.Settings(tokenizer="union")
    assert not prepare_fuse(base, tuned, output=tmp_path / "out", settings=settings, method=sculpt.Ties()).plan.notes


def tiny(*, tied: bool) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=tied)  # fmt: skip
    return LlamaForCausalLM(config)


def trained(folder: Path, *, tied: bool, rows: int = 32, **options: Any) -> tuple[Path, Any]:
    """Write an adapter over a model of 32 tokens, resized to so many; return it and PEFT's own merge."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = tiny(tied=tied)
    if rows != 32:
        model.resize_token_embeddings(rows, mean_resizing=False)
    targets = ["q_proj", *options.pop("targets", [])]
    adapter = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=targets, **options))
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    adapter.save_pretrained(folder)
    return folder, adapter.merge_and_unload().state_dict()


# The layouts that LLaMA-Factory#3125, peft#1300, open-instruct#142 and #190, Chinese-LLaMA-Alpaca#618 have.
ADAPTERS: dict[str, dict[str, Any]] = {
    "resized, both saved": {"tied": False, "rows": 34, "modules_to_save": ["embed_tokens", "lm_head"]},
    "resized, LoRA on both": {"tied": False, "rows": 34, "targets": ["embed_tokens", "lm_head"]},
    "resized and tied, LoRA on the embedding": {"tied": True, "rows": 34, "targets": ["embed_tokens"]},
    "trained tokens": {"tied": False, "trainable_token_indices": [3, 7]},
    "trained tokens of both": {"tied": False, "trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [2]}},
    "trained tokens, tied": {"tied": True, "trainable_token_indices": [7, 3]},
    "new trained tokens, tied": {"tied": True, "rows": 34, "trainable_token_indices": [32, 33]},
}
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own, on saving embeddings


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters_that_carry_embeddings_give_pefts_merge(case: str, tmp_path: Path, tensors_of: Read) -> None:
    options = dict(ADAPTERS[case])
    tiny(tied=options["tied"]).save_pretrained(tmp_path / "base")
    adapter, expected = trained(tmp_path / "adapter", **options)
    sculpt.fuse(tmp_path / "base", adapter, output=tmp_path / "out", method=sculpt.TaskArithmetic())
    found = tensors_of(tmp_path / "out")
    assert found.keys() == expected.keys() - ({HEAD} if options["tied"] else set())
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, expected[name].numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


def test_new_tokens_of_an_untied_model_need_its_resized_base(tmp_path: Path) -> None:
    """The adapter holds the new rows of the embedding alone: those of the output are lost."""
    tiny(tied=False).save_pretrained(tmp_path / "base")
    adapter, _ = trained(tmp_path / "adapter", tied=False, rows=34, trainable_token_indices=[32, 33])
    with pytest.raises(CheckpointError, match=r"there are 32 rows of `lm_head.weight` and 34 rows of") as caught:
        prepare_fuse(tmp_path / "base", adapter, output=tmp_path / "out")
    assert "save that base" in (caught.value.hint or "")


BOTH = {
    "both saved": {"rows": 34, "modules_to_save": ["embed_tokens", "lm_head"]},  # transformers#45127, unsloth#3444
    "LoRA on both": {"targets": ["embed_tokens", "lm_head"]},  # unsloth#3428, #9331
}


@pytest.mark.parametrize("case", BOTH)
def test_an_adapter_that_trains_both_goes_into_the_untied_model(case: str, tmp_path: Path, tensors_of: Read) -> None:
    import torch
    from transformers import LlamaForCausalLM

    model = tiny(tied=True)
    model.save_pretrained(tmp_path / "base")
    adapter, _ = trained(tmp_path / "adapter", tied=True, **BOTH[case])
    with pytest.raises(CheckpointError, match=r"tied to the embeddings|ties to") as caught:
        prepare_fuse(tmp_path / "base", adapter, output=tmp_path / "out")
    assert "`sculpt untie`" in (caught.value.hint or "")
    untie(tmp_path / "base", output=tmp_path / "untied")
    loaded, told = LlamaForCausalLM.from_pretrained(tmp_path / "untied", output_loading_info=True)
    assert not any(told.values())
    assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight
    rows = torch.arange(5)[None]
    assert torch.equal(loaded(rows).logits, model(rows).logits)
    sculpt.fuse(tmp_path / "untied", adapter, output=tmp_path / "out", method=sculpt.TaskArithmetic())
    found = tensors_of(tmp_path / "out")
    assert not np.array_equal(found[HEAD], found[EMBED])


def test_a_model_that_is_not_tied_is_not_untied(tmp_path: Path) -> None:
    tiny(tied=False).save_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"does not tie `lm_head.weight`"):
        untie(tmp_path / "base", output=tmp_path / "out")
