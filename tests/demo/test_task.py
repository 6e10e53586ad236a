from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import torch
from sculpt.data.batching import collate
from sculpt.data.example import IGNORED
from sculpt.demo.score import score_model
from sculpt.demo.task import Question, encode_prose, encode_question, write_calibration
from sculpt.demo.tiny import byte_tokenizer


class Successor(torch.nn.Module):
    """A model that expects token + 1 after any token, with probability `confidence`."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, vocabulary: int, confidence: float) -> None:
        super().__init__()
        self.head = torch.nn.Linear(vocabulary, vocabulary, bias=False)
        self.head.weight.data = math.log(confidence * (vocabulary - 1) / (1 - confidence)) * torch.eye(vocabulary)

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.head

    def forward(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
        size = self.head.in_features
        return SimpleNamespace(logits=self.head(torch.nn.functional.one_hot((input_ids + 1) % size, size).float()))


def test_an_answer_of_several_tokens_is_one_answer() -> None:
    example = encode_question(Question(prompt="ab", answers=("c", "de")), byte_tokenizer())
    assert example.tokens.shape == (1, 5)
    assert example.answers.tolist() == [[IGNORED, IGNORED, 0, 1, 1]]
    assert example.num_answers == 2


def test_every_token_of_prose_but_the_first_is_an_answer() -> None:
    example = encode_prose("prose and more", byte_tokenizer(), 5)
    assert example.tokens.shape == (1, 5)
    assert example.answers.tolist() == [[IGNORED, 0, 1, 2, 3]]


def test_padding_and_prompts_are_never_scored() -> None:
    tokenizer = byte_tokenizer()
    questions = [Question(prompt=p, answers=a) for p, a in (("a", ("b", "c")), ("abc", ("dd",)))]
    batch = collate([encode_question(question, tokenizer) for question in questions])
    assert batch.num_tokens == 8
    assert tokenizer.decode(batch.wanted.tokens) == "bcdd"
    assert batch.wanted.answers.tolist() == [0, 1, 0, 0]
    assert batch.wanted.rows.tolist() == [0, 0, 1, 1]


def test_scores_are_what_a_known_model_deserves() -> None:
    tokenizer = byte_tokenizer()
    model = Successor(len(tokenizer), 0.5)
    # "bc" continues the alphabet, "cd" and "x" do not begin where "a" leaves off: 1 of 3 answers is right.
    test = [encode_question(Question(prompt="a", answers=("bc", "cd", "x")), tokenizer)]
    prose = [encode_prose("abcd", tokenizer, 9), encode_prose("aaaa", tokenizer, 9)]
    score = score_model(model, test, prose)
    assert math.isclose(score.target, 100 / 3)
    assert math.isclose(score.general, 50.0)
    wrong = 0.5 / (len(tokenizer) - 1)
    assert math.isclose(score.perplexity, math.exp(-(math.log(0.5) + math.log(wrong)) / 2), rel_tol=1e-5)
    assert math.isclose(score.avg, (50 + 100 / 3) / 2)


def test_calibration_lines_hold_prompt_and_answers(tmp_path) -> None:
    file = write_calibration([Question(prompt="a γ", answers=(" b", " c"))], tmp_path / "calibration.jsonl")
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == [{"text": "a γ b c"}]
