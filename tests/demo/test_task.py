from __future__ import annotations

import json
import math
from types import SimpleNamespace

import torch
from sculpt.demo.score import score_model
from sculpt.demo.task import IGNORED, Example, batches, collate, encode_example, encode_prose, write_calibration
from sculpt.demo.tiny import byte_tokenizer
from sculpt.demo.train import answer_logits


def successor_model(vocabulary: int, confidence: float):
    """A model that expects token + 1 after any token, with probability `confidence`."""
    logit = math.log(confidence * (vocabulary - 1) / (1 - confidence))

    def base_model(*, input_ids, attention_mask, use_cache):
        return SimpleNamespace(last_hidden_state=input_ids[..., None])

    def head(hidden):
        return logit * torch.nn.functional.one_hot((hidden[..., 0] + 1) % vocabulary, vocabulary).float()

    return SimpleNamespace(base_model=base_model, get_output_embeddings=lambda: head, device=torch.device("cpu"))


def test_an_answer_of_several_tokens_is_one_answer() -> None:
    row = encode_example(Example(prompt="ab", answers=("c", "de")), byte_tokenizer())
    assert len(row.ids) == 5
    assert row.answer == (IGNORED, IGNORED, 0, 1, 1)


def test_every_token_of_prose_but_the_first_is_an_answer() -> None:
    row = encode_prose("prose and more", byte_tokenizer(), 5)
    assert len(row.ids) == 5
    assert row.answer == (IGNORED, 0, 1, 2, 3)


def test_padding_and_prompts_are_never_scored() -> None:
    tokenizer = byte_tokenizer()
    rows = [encode_example(Example(prompt=p, answers=a), tokenizer) for p, a in (("a", ("b", "c")), ("abc", ("dd",)))]
    batch = collate(rows)
    assert batch.num_answers == 3
    assert batch.num_tokens == 8
    _, tokens, answer = answer_logits(successor_model(300, 0.5), batch)
    assert tokenizer.decode(tokens) == "bcdd"
    assert answer.tolist() == [0, 1, 2, 2]


def test_batches_hold_every_row_once() -> None:
    tokenizer = byte_tokenizer()
    rows = [encode_prose("x" * length, tokenizer, 99) for length in (5, 3, 9, 2, 7)]
    lengths = [int(row.sum()) for batch in batches(rows, 2) for row in batch.attention_mask]
    assert lengths == [2, 3, 5, 7, 9]


def test_scores_are_what_a_known_model_deserves() -> None:
    tokenizer = byte_tokenizer()
    model = successor_model(len(tokenizer), 0.5)
    # "bc" continues the alphabet, "cd" and "x" do not begin where "a" leaves off: 1 of 3 answers is right.
    test = [encode_example(Example(prompt="a", answers=("bc", "cd", "x")), tokenizer)]
    prose = [encode_prose("abcd", tokenizer, 9), encode_prose("aaaa", tokenizer, 9)]
    score = score_model(model, test, prose)
    assert math.isclose(score.target, 100 / 3)
    assert math.isclose(score.general, 50.0)
    wrong = 0.5 / (len(tokenizer) - 1)
    assert math.isclose(score.perplexity, math.exp(-(math.log(0.5) + math.log(wrong)) / 2), rel_tol=1e-5)
    assert math.isclose(score.avg, (50 + 100 / 3) / 2)


def test_calibration_lines_hold_prompt_and_answers(tmp_path) -> None:
    file = write_calibration([Example(prompt="a γ", answers=(" b", " c"))], tmp_path / "calibration.jsonl")
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == [{"text": "a γ b c"}]
