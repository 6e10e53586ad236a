"""Scores of awkward rows are those of lm-evaluation-harness: by its own encoding, and by itself if installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sculpt.data.encoding import Encoder
from sculpt.data.row import Row
from sculpt.evaluate.evaluate import score_suite
from sculpt.evaluate.suite import read_suite
from sculpt.live.model import LiveModel, load_model
from sculpt.predict.likelihood import likelihoods

CORPUS = [
    "The capital of France is Paris. Question: what is that? Answer: that is the answer, the one and only.",
    "Grass is green, the sky is blue; two and two make four. Answer: no. Answer: yes. naïve café über alles 你好",
    'def f(x):\n    return x + 1\n\nprint(f(2))\n"quoted" (in brackets) 1234 12345',
] * 3
# Prompt and choices.
AWKWARD: dict[str, tuple[str, list[str]]] = {
    "a space before the choices": ("Question: what is that? Answer:", [" that", " the answer", " no"]),
    "a space that ends the prompt": ("Question: what is that? Answer: ", ["that", "the answer", "no"]),
    "two spaces that end it": ("Answer:  ", ["yes", "no"]),
    "a space at both": ("Answer: ", [" yes", " no"]),
    "a line break that ends it": ("Question: what is that?\n", ["that", "Paris", "no one"]),
    "a tab and breaks": ("def f(x):\n\t\n", ["return x", "print(x)"]),
    "no space": ("The capital of France is", ["Paris", ".", ",", "?"]),
    "a word across": ("The cap", ["ital", "tain", "e"]),
    "single letters": ("Answer:", ["A", "B", "C"]),
    "letters beyond ASCII": ("naïve café ", ["über", "你好", "é"]),
    "half of a letter's bytes": ("你", ["好", "们"]),
    "no prompt": ("", ["The capital", "Grass is green", " yes"]),
    "a choice of spaces": ("Answer:", [" ", "  ", "\n"]),
    "one choice begins another": ("Two and two make", [" four", " four. Answer"]),
    "a long one": ("Grass is green, the sky is blue; " * 6 + "Answer:", [" yes", " no. Answer: yes"]),
}


def words(bos: bool) -> Any:
    """Return a byte-level BPE tokenizer, as GPT-2's, that puts a token before a text, as Llama's, or none."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = trainers.BpeTrainer
    made.train_from_iterator(
        CORPUS, trainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    )
    if bos:
        made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="module", params=[True, False], ids=["with a first token", "without"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LiveModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("harness")
    tokenizer = words(request.param)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=1, initializer_range=0.4,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder, device="cpu")


def encoded_as_harness(tokenizer: Any, prompt: str, choice: str) -> tuple[list[int], list[int]]:
    """Return what lm-evaluation-harness 0.4.13 reads and what it scores: `TemplateLM.loglikelihood`, `_encode_pair`."""
    if prompt == "":
        first, ids = tokenizer.bos_token_id, tokenizer.encode(choice, add_special_tokens=False)
        return ([first], ids) if ids[0] != first else (ids[:1], ids[1:])
    spaces = len(prompt) - len(prompt.rstrip())
    if spaces:
        prompt, choice = prompt[:-spaces], prompt[-spaces:] + choice
    whole, read = tokenizer.encode(prompt + choice), tokenizer.encode(prompt)
    return read, whole[len(read) :]


@torch.no_grad()
def by_its_encoding(model: LiveModel, prompt: str, choice: str) -> float:
    read, said = encoded_as_harness(model.tokenizer, prompt, choice)
    logits = model.model(torch.tensor([read + said])).logits[0].double().log_softmax(-1)
    return float(sum(logits[len(read) + k - 1, token] for k, token in enumerate(said)))


def ours(model: LiveModel, prompt: str, choices: list[str], batch_size: int) -> list[float]:
    encoder = Encoder(model.path, model.model, max_length=256, for_scores=True)
    rows = [Row({"prompt": prompt, "completion": choice}, "a row", Path()) for choice in choices]
    examples = [example for row in rows for example in encoder.labelled(row)]
    found = likelihoods(model.model, examples, device=model.device, batch_size=batch_size)
    return [likelihood.log_probability for likelihood in found]


@pytest.mark.parametrize("case", AWKWARD)
def test_log_likelihoods_are_those_of_the_harness(case: str, model: LiveModel) -> None:
    prompt, choices = AWKWARD[case]
    expected = [by_its_encoding(model, prompt, choice) for choice in choices]
    for batch_size in (1, 16):
        assert ours(model, prompt, choices, batch_size) == pytest.approx(expected, abs=5e-5)


@pytest.mark.filterwarnings("default")  # the library's own are not ours to mend
def test_the_harness_itself_agrees(model: LiveModel) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    pairs = [(prompt, choice) for prompt, choices in AWKWARD.values() for choice in choices]
    asked = [Instance("loglikelihood", {}, pair, k) for k, pair in enumerate(pairs)]
    theirs = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=1).loglikelihood(asked)
    mine = [value for prompt, choices in AWKWARD.values() for value in ours(model, prompt, choices, 16)]
    assert mine == pytest.approx([value for value, _ in theirs], abs=5e-5)


def test_a_pair_for_an_encoder_decoder_is_scored_without_an_end_as_by_the_harness(tmp_path: Path) -> None:
    from tokenizers import processors
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = words(bos=False)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    live = load_model(tmp_path / "t5", device="cpu")
    for prompt, choice in (("Answer:", " yes"), ("Answer: ", "no, not that")):
        read = torch.tensor([tokenizer.encode(prompt.rstrip())])
        said = tokenizer.encode(prompt[len(prompt.rstrip()) :] + choice, add_special_tokens=False)
        given = torch.tensor([[0, *said[:-1]]])
        with torch.no_grad():
            logits = live.model(input_ids=read, decoder_input_ids=given).logits[0].double().log_softmax(-1)
        expected = float(sum(logits[k, token] for k, token in enumerate(said)))
        assert ours(live, prompt, [choice], 1) == pytest.approx([expected], abs=5e-5)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[LiveModel, dict[str, str]]:
    """A tiny Llama that knows a few answers by heart, most of which begin with line breaks."""
    from sculpt.demo.tiny import byte_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    answers = {"France?": "\nParis\nI", "Italy?": "\n\nRome", "Spain?": "Madrid\nx", "a poem?": " \n four\nfive"}
    folder, tokenizer = tmp_path_factory.mktemp("learned"), byte_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    rows = [tokenizer(prompt + answer)["input_ids"] + [tokenizer.eos_token_id] for prompt, answer in answers.items()]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.generation_config.update(repetition_penalty=9.0, no_repeat_ngram_size=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder, device="cpu"), answers


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_answer_may_begin_with_a_line_break_and_is_chosen_greedily(
    batch_size: int, learned: tuple[LiveModel, dict[str, str]], tmp_path: Path
) -> None:
    """The model's own configuration asks for a penalty under which it says none of its answers."""
    model, answers = learned
    wanted = {"France?": "Paris", "Italy?": "Rome", "Spain?": "Madrid", "a poem?": "four"}
    rows = [{"prompt": prompt, "answer": wanted[prompt]} for prompt in answers]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = model.model.generation_config.to_dict()

    def score(more: str = "") -> float:
        text = f"target: {{qa: {{scorer: exact-match, file: rows.jsonl, max_new_tokens: 16{more}}}}}"
        (tmp_path / "suite.yaml").write_text(text)
        return score_suite(model, read_suite(tmp_path / "suite.yaml"), batch_size=batch_size).tasks[0].score

    assert score() == 100
    assert score(", penalties: true") < 100
    assert model.model.generation_config.to_dict() == before


def test_a_model_whose_state_padding_enters_writes_the_same_in_any_batch(tmp_path: Path) -> None:
    from sculpt.data.example import Example
    from sculpt.demo.tiny import byte_tokenizer
    from sculpt.predict.generation import generate
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = RecurrentGemmaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        lru_width=32, attention_window_size=16, w_init_variance_scale=1.0,
    )  # fmt: skip
    model = RecurrentGemmaForCausalLM(config).eval()
    live = LiveModel(path=tmp_path, model=model, device=torch.device("cpu"))
    prompts = [
        Example.of_tokens(ids, [0] * len(ids))
        for text in ("The cat", "A much longer prompt than that", "x", "The dog")
        for ids in [tokenizer(text)["input_ids"]]
    ]
    one, many = (generate(live, prompts, max_new_tokens=8, stop=["\n"], batch_size=size) for size in (1, 4))
    assert one == many
