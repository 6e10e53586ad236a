"""A row is the same tokens, with the same of them to be predicted, whichever command reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from sculpt.data.encoding import Encoder
from sculpt.data.example import IGNORED, Example
from sculpt.data.row import Row
from sculpt.data.rows import open_rows
from sculpt.data.tokens import tokenize
from sculpt.demo.task import Question, encode_question
from sculpt.evaluate.captions import write_captions
from sculpt.evaluate.evaluate import score_suite
from sculpt.evaluate.job import Job
from sculpt.evaluate.suite import Caption, read_suite
from sculpt.hessian import CalibrationOptions
from sculpt.hessian.session import Session
from sculpt.learn.buffer import read_buffer
from sculpt.live.model import LiveModel
from sculpt.training.data import TrainingSet, collate_labelled

from ..training import tiny

WORDS = [
    *("<pad>", "<s>", "</s>", "<unk>", "<image>", "user", "assistant", "what", "is", "two", "plus", "?"),
    *("ans", "wer", "answer", ":", "four", "five", "."),
]
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }} {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}<image> {% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    " </s> {% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)
SIZES = {**tiny.SIZES, "vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PICTURE = tiny.picture(0)
USER = {"role": "user", "content": "what is two plus two?"}
SHOWN = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is two plus two?"}]}
HOLDING = {"role": "user", "content": [{"type": "image", "image": PICTURE}, SHOWN["content"][1]]}
SAID = {"role": "assistant", "content": "four."}
SAID_IN_PARTS = {"role": "assistant", "content": [{"type": "text", "text": "four."}]}
ASKED = "<s> user what is two plus two ? </s> assistant"
SHOWN_AND_ASKED = "<s> user <image> <image> <image> <image> what is two plus two ? </s> assistant"
# The row, the tokens that are only read, and those that are to be predicted.
TEXTS = {
    "text": ({"text": "two plus two."}, "<s>", "two plus two . </s>"),
    "a token on the boundary": (
        {"prompt": "what is two plus two? ans", "completion": "wer: four"},
        "<s> what is two plus two ?",
        "answer : four </s>",
    ),
    "a space before": ({"prompt": "two plus two", "completion": " four"}, "<s> two plus two", "four </s>"),
    "a space behind": ({"prompt": "two plus two ", "completion": "four"}, "<s> two plus two", "four </s>"),
    "spaces at both": ({"prompt": "two plus two ", "completion": " four"}, "<s> two plus two", "four </s>"),
    "no space": ({"prompt": "what is two", "completion": "? four"}, "<s> what is two", "? four </s>"),
    "blank at the end": ({"prompt": "two plus two", "completion": " four \n"}, "<s> two plus two", "four </s>"),
    "a word in common": ({"prompt": "two", "completion": " two two"}, "<s> two", "two two </s>"),
    "no prompt": ({"prompt": "", "completion": "four"}, "<s>", "four </s>"),
}
CHATS = {
    "messages": ({"messages": [USER, SAID]}, ASKED, "four . </s>"),
    "turns": ({"messages": [USER, SAID, USER, SAID]}, f"{ASKED} four . </s> {ASKED[4:]}", "four . </s>"),
    "lists of messages": ({"prompt": [USER], "completion": [SAID]}, ASKED, "four . </s>"),
    "a list and a text": ({"prompt": [USER], "completion": "four."}, ASKED, "four . </s>"),
}
IMAGES = {
    "an image": (
        {"image": PICTURE, "prompt": "what is two plus two?", "completion": "four."},
        SHOWN_AND_ASKED,
        "four . </s>",
    ),
    "an image in messages": ({"image": PICTURE, "messages": [SHOWN, SAID_IN_PARTS]}, SHOWN_AND_ASKED, "four . </s>"),
    "an image and lists": (
        {"images": [PICTURE], "prompt": [SHOWN], "completion": [SAID_IN_PARTS]},
        SHOWN_AND_ASKED,
        "four . </s>",
    ),
    "an image that a message holds": ({"messages": [HOLDING, SAID_IN_PARTS]}, SHOWN_AND_ASKED, "four . </s>"),
    "an image that a prompt's message holds": (
        {"prompt": [HOLDING], "completion": [SAID_IN_PARTS]},
        SHOWN_AND_ASKED,
        "four . </s>",
    ),
    "an image that a prompt's message holds, and a text": (
        {"prompt": [HOLDING], "completion": "four."},
        SHOWN_AND_ASKED,
        "four . </s>",
    ),
}
ROWS = {**TEXTS, **CHATS, **IMAGES}


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def tokenizer(around: str = "<s> $A </s>") -> Any:
    """Return a tokenizer of words and punctuation, and what it puts around every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words: Any = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(around, special_tokens=[("<s>", 1), ("</s>", 2)])
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    found.chat_template = CHAT
    return found


@dataclass(frozen=True, kw_only=True)
class Made:
    folder: Path
    model: Any

    def encoder(self, **options: Any) -> Encoder:
        return Encoder(self.folder, self.model, **{"max_length": 64, **options})


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("text")
    model = tiny.llama(**SIZES)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return Made(folder=folder, model=model.eval())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("pictures")
    tiny.llava_folder(folder, tokenizer(), sizes=SIZES, image=WORDS.index("<image>"), chat=CHAT)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    return Made(folder=folder, model=model.eval())


def made_for(case: str, text: Made, pictures: Made) -> Made:
    return pictures if case in IMAGES else text


def marked(example: Example) -> tuple[list[int], list[int]]:
    """Return the tokens that are read, and the places of those that are predicted."""
    assert example.inputs["input_ids"].tolist() == example.tokens.tolist()
    places = (example.answers[0, 1:] != IGNORED).nonzero()[:, 0] + 1
    return example.tokens[0].tolist(), places.tolist()


def calibrated(made: Made, file: Path) -> tuple[list[int], list[int]]:
    with Session(made.folder, CalibrationOptions(data=file)) as session:
        (sample,) = session.samples
        return marked(sample)


def trained(made: Made, file: Path) -> tuple[list[int], list[int]]:
    (example,) = [*TrainingSet(open_rows(file), made.encoder(ends_texts=True))]
    batch = collate_labelled([example])
    places = (batch["labels"][0, 1:] != IGNORED).nonzero()[:, 0] + 1
    assert torch.equal(batch["labels"][0, places], batch["input_ids"][0, places])
    return batch["input_ids"][0].tolist(), places.tolist()


def learned(made: Made, file: Path) -> tuple[list[int], list[int]]:
    (sample,) = read_buffer(file, made.encoder(), classifies=False)
    return marked(sample.example)


def in_the_demo(made: Made, file: Path) -> tuple[list[int], list[int]]:
    row = json.loads(file.read_text())
    question = Question(prompt=row.get("prompt", ""), answers=(row.get("completion", row.get("text")),))
    return marked(encode_question(question, transformers.AutoTokenizer.from_pretrained(made.folder)))


@contextmanager
def seen_by(model: Any) -> Iterator[list[list[int]]]:
    """Yield a list to which every run of the model adds the tokens of each of its rows."""
    seen: list[list[int]] = []
    handle = model.register_forward_pre_hook(
        lambda _module, _args, given: seen.extend(given["input_ids"].tolist()), with_kwargs=True
    )
    yield seen
    handle.remove()


def live(made: Made) -> LiveModel:
    return LiveModel(path=made.folder, model=made.model, device=torch.device("cpu"))


def score(made: Made, file: Path, scorer: str) -> tuple[list[list[int]], Mapping[str, float]]:
    """Return the tokens that a scorer gives the model, and its figures."""
    suite = file.with_suffix(".yaml")
    suite.write_text(f"batch_size: 1\ntarget: {{one: {{file: {file.name}, scorer: {scorer}}}}}\n")
    with seen_by(made.model) as seen:
        (task,) = score_suite(live(made), read_suite(suite)).tasks
    return seen, task.figures


def scored(made: Made, file: Path) -> tuple[list[int], float]:
    (tokens,), figures = score(made, file, "perplexity")
    return tokens, figures["num_tokens"]


COMMANDS: dict[str, Callable[[Made, Path], tuple[list[int], list[int]]]] = {
    "calibrate": calibrated,
    "lora-train": trained,
    "lora-merge --weights adaptive": learned,
}


def expected(case: str, *, scored: bool = False) -> tuple[list[int], list[int]]:
    """Return the tokens and the places of those to be predicted; as lm-evaluation-harness scores them, if they are."""
    _, before, after = ROWS[case]
    if scored and case == "a token on the boundary":  # to it `ans` is a token of the prompt, and so is the first
        before, after = f"{before} answer", ": four </s>"
    return ids(f"{before} {after}"), [*range(len(before.split()), len(f"{before} {after}".split()))]


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_gives_the_same_tokens(
    command: str, case: str, text: Made, pictures: Made, tmp_path: Path
) -> None:
    row = ROWS[case][0]
    made = made_for(case, text, pictures)
    assert COMMANDS[command](made, tiny.write_rows(tmp_path / "d.jsonl", row)) == expected(case)


@pytest.mark.parametrize("case", TEXTS)
def test_the_demo_gives_the_same_tokens(case: str, text: Made, tmp_path: Path) -> None:
    assert in_the_demo(text, tiny.write_rows(tmp_path / "d.jsonl", ROWS[case][0])) == expected(case)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("row", "before"),
    [
        ({"prompt": "what is two plus two?", "completion": ""}, "<s> what is two plus two ?"),
        ({"prompt": [USER], "completion": ""}, ASKED),
        ({"prompt": "what is two plus two?", "completion": "", "image": PICTURE}, SHOWN_AND_ASKED),
    ],
)
def test_an_empty_completion_is_its_end_alone(
    command: str, row: dict[str, Any], before: str, text: Made, pictures: Made, tmp_path: Path
) -> None:
    found = COMMANDS[command](pictures if "image" in row else text, tiny.write_rows(tmp_path / "d.jsonl", row))
    assert found == (ids(f"{before} </s>"), [len(before.split())])


@pytest.mark.parametrize(
    ("row", "tokens", "places"),
    [
        ({"prompt": "", "completion": "two plus"}, "<s> two plus", [1, 2]),
        ({"prompt": " ", "completion": "two plus"}, "<s> two plus", [1, 2]),
        ({"prompt": "ans", "completion": "wer: four"}, "<s> answer : four", [1, 2, 3]),
        ({"prompt": "two", "completion": " four"}, "two four", [1]),
    ],
)
def test_an_answer_with_no_token_before_it_is_led_by_one_in_every_command(
    row: dict[str, Any], tokens: str, places: list[int], text: Made, tmp_path: Path
) -> None:
    """Many tokenizers put no token around a text; training then adds the end, which is to be learned and counts."""
    bare = Made(folder=tmp_path / "bare", model=text.model)
    text.model.save_pretrained(bare.folder)
    tokenizer(around="$A").save_pretrained(bare.folder)
    file = tiny.write_rows(tmp_path / "d.jsonl", row)
    wanted = ids(tokens), places
    assert learned(bare, file) == wanted
    if row["prompt"] != "ans":  # whose one token is all that lm-evaluation-harness takes for read
        assert scored(bare, file) == (wanted[0], len(places))
    ended = [*wanted[0], *ids("</s>")], [*places, places[-1] + 1]
    assert trained(bare, file) == ended
    assert calibrated(bare, file) == ended


@torch.no_grad()
def loss_of(made: Made, case: str) -> float:
    """Return the mean loss of the tokens that are to be predicted, from all logits of the row alone."""
    tokens, places = expected(case, scored=True)
    (example,) = made.encoder().examples(Row(ROWS[case][0], case, Path()))
    given = {**example.inputs, "input_ids": torch.tensor([tokens]), "attention_mask": torch.ones(1, len(tokens))}
    logits = made.model(**given).logits[0].double()
    own = [logits[place - 1].log_softmax(-1)[tokens[place]] for place in places]
    return -float(torch.stack(own).mean())


@pytest.mark.parametrize("case", ROWS)
def test_scores_are_of_the_same_tokens(case: str, text: Made, pictures: Made, tmp_path: Path) -> None:
    made = made_for(case, text, pictures)
    tokens, places = expected(case, scored=True)
    seen, figures = score(made, tiny.write_rows(tmp_path / "d.jsonl", ROWS[case][0]), "perplexity")
    assert seen == [tokens]
    assert figures["num_tokens"] == len(places)
    assert figures["loss"] == pytest.approx(loss_of(made, case), rel=1e-5)


PROMPTED = [*CHATS, *IMAGES, "a space before", "a space behind", "no space", "no prompt"]


@pytest.mark.parametrize("case", PROMPTED)
def test_what_is_to_be_answered_is_what_an_answer_follows(
    case: str, text: Made, pictures: Made, tmp_path: Path
) -> None:
    row, before, _ = ROWS[case]
    row = {**row, "prompt": row["messages"][:-1] if "messages" in row else row["prompt"], "answer": "five"}
    made = made_for(case, text, pictures)
    file = tiny.write_rows(tmp_path / "d.jsonl", row)
    assert score(made, file, "exact-match, max_new_tokens: 1, stop: []")[0] == [ids(before)]
    task = Caption(scorer="caption", file=file, max_new_tokens=1, stop=[])
    with seen_by(made.model) as seen:
        rows, encoder = open_rows(file), made.encoder(for_scores=True)
        write_captions(task, Job(model=live(made), rows=rows, encoder=encoder, batch_size=1, max_length=0), [*rows])
    assert seen == [ids(before)]


@pytest.mark.parametrize("case", [case for case in ROWS if "prompt" in ROWS[case][0]])
def test_a_choice_is_read_as_a_completion(case: str, text: Made, pictures: Made, tmp_path: Path) -> None:
    row = ROWS[case][0]
    said = row["completion"] if isinstance(row["completion"], str) else "four."
    file = tiny.write_rows(tmp_path / "d.jsonl", {**row, "choices": [said], "answer": 0})
    assert score(made_for(case, text, pictures), file, "multiple-choice")[0] == [expected(case)[0]]


def test_a_text_that_has_a_class_is_read_as_a_text(text: Made, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**SIZES, num_labels=2)).eval()
    made = Made(folder=text.folder, model=model)
    row, _, _ = ROWS["text"]
    file = tiny.write_rows(tmp_path / "d.jsonl", {**row, "label": 0})
    assert score(made, file, "classification")[0] == [expected("text")[0]]
    (sample,) = read_buffer(file, made.encoder(), classifies=True)
    assert sample.example.tokens.tolist() == [expected("text")[0]]


def test_several_answers_are_told_apart_by_the_same_rule() -> None:
    found = encode_question(Question(prompt="two ans", answers=("wer:", " four", ".")), tokenizer())
    assert found.tokens.tolist() == [ids("<s> two answer : four . </s>")]
    assert found.answers.tolist() == [[IGNORED, IGNORED, 0, 0, 1, 2, 2]]


@pytest.mark.parametrize(("prompt", "completion"), [("two γ", "é?"), ("two ", "\u2009four"), ("", "ab"), ("ab", "")])
def test_a_tokenizer_that_does_not_say_where_tokens_lie_gives_what_one_does_that_says(
    prompt: str, completion: str
) -> None:
    """ByT5's is written in Python: one token a byte, and an end."""
    found = tokenize(transformers.ByT5Tokenizer(), prompt + completion, (len(prompt),))
    before, after = len(prompt.encode()), len(completion.encode())
    assert found.ids == [byte + 3 for byte in (prompt + completion).encode()] + [1]
    assert found.answers == [IGNORED] * before + [0] * (after + 1)


def test_what_is_too_long_keeps_its_answer_in_every_command(text: Made) -> None:
    row = Row({"prompt": "what is two plus two?", "completion": " four."}, "a row", Path())
    (kept,) = text.encoder(max_length=6, for_scores=True).labelled(row)
    assert marked(kept) == (ids("<s> two ? four . </s>"), [3, 4, 5])
    (cut,) = text.encoder(max_length=6).examples(row)
    assert marked(cut) == marked(kept)
