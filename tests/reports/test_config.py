"""Configurations that contradicted the weights beside them: dtype, vocabulary, special tokens, class, quantisation."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import sculpt
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from sculpt.api import check_output, prepare_fuse
from sculpt.fusion.errors import RecipeError, SculptError
from sculpt.fusion.methods import TaskArithmetic, Ties
from sculpt.fusion.recipe.prepare import prepare_recipe
from sculpt.fusion.recipe.read import read_recipe
from sculpt.fusion.run.fuse import execute
from sculpt.fusion.run.settings import Settings
from tokenizers import Tokenizer, models

from .tiny import config_of, loads, model, moved, pair, saved, tensors_of

HALF = TaskArithmetic(scale=0.5)


def fuse(base: Path, tuned: Path, output: Path, *, method: Any = HALF, **settings: Any) -> Any:
    return sculpt.fuse(base, tuned, output=output, method=method, calibration=False, settings=Settings(**settings))


def cast(folder: Path, name: str, dtype: torch.dtype, seed: int = 0) -> Path:
    found = model() if not seed else moved(model(), seed)
    return saved(found.to(dtype), folder / name)


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float16])
def test_a_float32_fine_tune_is_stored_as_its_base(base: torch.dtype, tmp_path: Path) -> None:
    # What trainers save. axolotl#904, mergekit#604, LLaMA-Factory#2075: the configuration said float32.
    one, two = cast(tmp_path, "base", base), cast(tmp_path, "tuned", torch.float32, seed=1)
    manifest = fuse(one, two, tmp_path / "out")
    name = str(base).removeprefix("torch.")
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "out").values()} == {base}
    assert config_of(tmp_path / "out")["dtype"] == name
    assert loads(tmp_path / "out").dtype == base
    told = f"30 tensors of `tuned` in float32: computed in float32, stored in {name}"
    assert told in manifest.notes
    assert manifest.settings["policies"]["on_dtype"] == "convert"
    before, after = tensors_of(one)["lm_head.weight"].float(), tensors_of(two)["lm_head.weight"]
    expected = (before + 0.5 * (after - before)).to(base)
    assert torch.equal(tensors_of(tmp_path / "out")["lm_head.weight"], expected)
    with pytest.raises(SculptError, match=r"is b?float16 in the base and float32 in") as refused:
        prepare_fuse(one, two, output=tmp_path / "o", settings=Settings(policies=sculpt.Policies(on_dtype="error")))
    assert [way.option for way in refused.value.ways] == ["on_dtype"]


def test_a_copied_tensor_of_the_fine_tune_is_stored_as_its_base_too(tmp_path: Path) -> None:
    one, two = cast(tmp_path, "base", torch.bfloat16), cast(tmp_path, "tuned", torch.float32, seed=1)
    fuse(one, two, tmp_path / "out", selection=sculpt.Selection(exclude=("*norm*",), rest="tuned"))
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "out").values()} == {torch.bfloat16}


def test_weights_that_become_wider_are_not_cut_again_at_loading(tmp_path: Path) -> None:
    one, two = cast(tmp_path, "base", torch.float32), cast(tmp_path, "tuned", torch.float16, seed=1)
    fuse(one, two, tmp_path / "out", method=Ties(density=0.5))
    assert config_of(tmp_path / "out")["dtype"] == "float32"
    assert loads(tmp_path / "out").dtype == torch.float32


@pytest.mark.parametrize("integer", ["base", "tuned"])
def test_an_integer_is_not_converted(integer: str, tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    folder = tmp_path / integer
    tensors = tensors_of(folder)
    save_file({**tensors, "lm_head.weight": tensors["lm_head.weight"].to(torch.int32)}, folder / "model.safetensors")
    with pytest.raises(SculptError, match=r"`lm_head.weight` is (int32|float32) in the base and") as refused:
        prepare_fuse(one, two, output=tmp_path / "out")
    assert not refused.value.ways


PLAIN = {"merge_method": "linear", "models": [{"model": "base", "parameters": {"weight": 1}}] * 2}
RECIPES = {
    "models": PLAIN,
    "one model": {"merge_method": "passthrough", "models": [{"model": "base"}]},
    "slices": {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": "base", "layer_range": [0, 3]}]}],
    },
    "our own": {"method": "task-arithmetic", "base": "base", "models": ["tuned"]},
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", ["bfloat", "bf16", "fp16", "BF16", "int8"])
def test_an_unknown_dtype_is_refused_in_every_form_of_recipe(recipe: str, dtype: str, tmp_path: Path) -> None:
    # mergekit#398
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump({**RECIPES[recipe], "dtype": dtype}))
    with pytest.raises(RecipeError, match=f"`dtype` must be one of .*, got `{dtype}`"):
        read_recipe(str(file))


@pytest.mark.parametrize("recipe", RECIPES)
def test_torchs_own_name_of_a_dtype_is_understood(recipe: str, tmp_path: Path) -> None:
    pair(tmp_path)
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump({**RECIPES[recipe], "dtype": "torch.bfloat16"}))
    execute(prepare_recipe(read_recipe(str(file)), output=tmp_path / "out", near=tmp_path))
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "out").values()} == {torch.bfloat16}
    assert config_of(tmp_path / "out")["dtype"] == "bfloat16"
    assert loads(tmp_path / "out").dtype == torch.bfloat16


WORDS = ["<s>", "</s>", "<|im_end|>", "a", "b", "c", "d"]


def tokenizer(folder: Path, order: list[int], **special: str) -> None:
    words = [WORDS[k] for k in order]
    own = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="a"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "a", **special}
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, **named).save_pretrained(folder)


def with_tokenizer(folder: Path, name: str, order: list[int], seed: int, **special: str) -> Path:
    def at(word: str) -> int:
        return order.index(WORDS.index(word))

    ids = {"bos_token_id": at("<s>"), "eos_token_id": at("</s>"), "pad_token_id": at("</s>")}
    found = model(vocab_size=len(order), seed=seed, **ids)
    found.generation_config.eos_token_id = [at("</s>"), at("<|im_end|>")]
    saved(found, folder / name)
    tokenizer(folder / name, order, **special)
    return folder / name


def ids_of(folder: Path, file: str = "config.json") -> list[Any]:
    said = json.loads((folder / file).read_text())
    return [said[f"{name}_token_id"] for name in ("bos", "eos", "pad")]


def test_special_tokens_are_those_of_the_tokenizer_that_is_written(tmp_path: Path) -> None:
    # unsloth#5386, axolotl#801, open-r1#663: the merged model never stops.
    with_tokenizer(tmp_path, "one", [0, 1, 2, 3, 4, 5, 6], seed=0)
    with_tokenizer(tmp_path, "two", [3, 4, 5, 6, 2, 1, 0], seed=1)
    for source, expected in (("two", [6, 5, 5]), ("one", [0, 1, 1]), ("union", [0, 1, 1])):
        recipe = {**PLAIN, "models": [{"model": m, "parameters": {"weight": 1}} for m in ("one", "two")]}
        file = tmp_path / "recipe.yml"
        file.write_text(yaml.safe_dump({**recipe, "tokenizer_source": source}))
        output = tmp_path / f"out-{source}"
        execute(prepare_recipe(read_recipe(str(file)), output=output, near=tmp_path))
        written = transformers.AutoTokenizer.from_pretrained(output)
        assert [written.bos_token_id, written.eos_token_id, written.pad_token_id] == expected
        assert ids_of(output) == expected
        bos, eos, pad = ids_of(output, "generation_config.json")
        assert [bos, eos[0], pad] == expected
        assert eos[1] == written.convert_tokens_to_ids("<|im_end|>")
        loads(output)


def test_a_tokenizer_that_ends_its_texts_otherwise_than_its_configuration_is_told(tmp_path: Path) -> None:
    # A trainer that changed the tokenizer alone: text of the fused model never stops there.
    order = list(range(7))
    base, tuned = (with_tokenizer(tmp_path, name, order, seed=k) for k, name in enumerate(("base", "tuned")))
    tokenizer(tuned, order, eos_token="d")
    told = "ends a text by `d` (6), its configuration by [1, 2] alone"
    assert [told in note for note in fuse(base, tuned, tmp_path / "out").notes] == [True]
    tokenizer(tuned, order, eos_token="<|im_end|>")  # one of those of `generation_config.json`
    assert not fuse(base, tuned, tmp_path / "agreed").notes


def adapter(folder: Path, base: Any, change: Callable[[dict[str, Any]], None] = lambda _: None, **options: Any) -> Path:
    """Save an adapter with random B over a model."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers by an older name
        peft.get_peft_model(base, config).save_pretrained(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_that_ends_its_turns_otherwise_says_so_in_the_configuration(tmp_path: Path) -> None:
    order = list(range(7))
    base = with_tokenizer(tmp_path, "base", order, seed=0)
    own = adapter(tmp_path / "adapter", transformers.AutoModelForCausalLM.from_pretrained(base))
    tokenizer(own, order, eos_token="<|im_end|>")
    fuse(base, own, tmp_path / "out")
    assert ids_of(tmp_path / "out") == [0, 2, 1]
    assert ids_of(tmp_path / "out", "generation_config.json")[1][0] == 2
    tokenizer(own, order)  # as the base's: nothing is said anew
    fuse(base, own, tmp_path / "same")
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "same" / name).read_bytes() == (base / name).read_bytes()


@pytest.mark.parametrize("side", ["tuned", "base"])
def test_the_size_of_a_vocabulary_is_that_of_the_weights(side: Any, tmp_path: Path) -> None:
    base, tuned = saved(model(), tmp_path / "base"), saved(moved(model(vocab_size=40)), tmp_path / "tuned")
    fuse(base, tuned, tmp_path / "out", config_from=side)
    rows = len(tensors_of(tmp_path / "out")["lm_head.weight"])
    assert config_of(tmp_path / "out")["vocab_size"] == rows
    assert loads(tmp_path / "out").get_input_embeddings().weight.shape[0] == rows


def test_an_adapter_with_more_rows_than_its_base_says_so(tmp_path: Path) -> None:
    base = saved(model(), tmp_path / "base")

    def grow(tensors: dict[str, Any]) -> None:
        for name in ("model.embed_tokens", "lm_head"):
            tensors[f"base_model.model.{name}.weight"] = torch.ones(50, 16)

    own = adapter(tmp_path / "adapter", model(), grow)
    fuse(base, own, tmp_path / "out", policies=sculpt.Policies(on_mismatch="take-tuned"))
    assert config_of(tmp_path / "out")["vocab_size"] == 50
    assert loads(tmp_path / "out").get_input_embeddings().weight.shape[0] == 50


def test_a_stale_quantisation_is_not_said_of_plain_weights(tmp_path: Path) -> None:
    # unsloth#1601, open-instruct#149, unsloth#1770: what a QLoRA merge leaves in the configuration.
    base, tuned = pair(tmp_path)
    stale = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (tuned / "config.json").write_text(json.dumps({**config_of(tuned), **stale}))
    manifest = fuse(base, tuned, tmp_path / "out")
    assert "quantization_config" not in config_of(tmp_path / "out")
    assert any(note.startswith("`quantization_config` of") for note in manifest.notes)
    loads(tmp_path / "out")


def test_a_reward_models_adapter_says_its_class_and_labels(tmp_path: Path) -> None:
    # trl#368, trl#297, ms-swift#4957: merged as a causal model, with lm_head and score.
    base = saved(model("Qwen2"), tmp_path / "base")
    torch.manual_seed(0)
    own = adapter(tmp_path / "adapter", model("Qwen2", "ForSequenceClassification", num_labels=3), task_type="SEQ_CLS")
    taken = sculpt.Policies(on_extra="take-tuned", on_missing="keep-base")
    with pytest.raises(SculptError, match=r"`lm_head.weight` has no place in `Qwen2ForSequenceClassification`"):
        check_output(prepare_fuse(base, own, output=tmp_path / "o", settings=Settings(policies=taken)))
    fuse(base, own, tmp_path / "out", policies=sculpt.Policies(on_extra="take-tuned", on_missing="drop"))
    found = loads(tmp_path / "out", "AutoModelForSequenceClassification")
    assert type(found).__name__ == "Qwen2ForSequenceClassification"
    assert found.config.num_labels == 3
