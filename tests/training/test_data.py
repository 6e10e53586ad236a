"""Only completions are labelled, whatever the template, with images or without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sculpt.data.encoding import Encoder
from sculpt.data.example import IGNORED, Example
from sculpt.data.rows import open_rows
from sculpt.fusion.errors import DataError
from sculpt.fusion.rows import RowOptions
from sculpt.training.data import TrainingSet, collate_labelled

from . import tiny
from .tiny import ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama_folder(tmp_path_factory.mktemp("llama"))


def examples(
    folder: Path,
    file: Path,
    *rows: dict[str, Any],
    model: Any = None,
    max_length: int = 64,
    options: RowOptions | None = None,
) -> TrainingSet:
    encoder = Encoder(folder, model or tiny.llama(), max_length=max_length, options=options, ends_texts=True)
    return TrainingSet(open_rows(tiny.write_rows(file, *rows)), encoder)


def learned(example: Example) -> tuple[list[int], list[int]]:
    batch = collate_labelled([example])
    labels, tokens = batch["labels"][0], batch["input_ids"][0]
    kept = labels != IGNORED
    assert torch.equal(labels[kept], tokens[kept])
    return tokens[~kept].tolist(), tokens[kept].tolist()


USER, ANSWER = {"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}
CASES = {
    "prompt": ({"prompt": "a b", "completion": " c d"}, "a b", "c d </s>"),
    "first word in common": ({"prompt": "a b", "completion": " x d"}, "a b", "x d </s>"),
    "empty prompt": ({"prompt": "", "completion": "c d"}, "</s>", "c d </s>"),
    "text": ({"text": "a b c"}, "", "a b c </s>"),
    "messages": ({"messages": [USER, ANSWER]}, "user a b </s> assistant", "c d </s>"),
    "several turns": (
        {"messages": [USER, ANSWER, USER, ANSWER]},
        "user a b </s> assistant c d </s> user a b </s> assistant",
        "c d </s>",
    ),
    "lists of messages": ({"prompt": [USER], "completion": [ANSWER]}, "user a b </s> assistant", "c d </s>"),
    "ids": ({"input_ids": ids("a b")}, "", "a b"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_to_be_predicted(case: str, folder: Path, tmp_path: Path) -> None:
    row, before, after = CASES[case]
    (found,) = examples(folder, tmp_path / "d.jsonl", row)
    assert learned(found) == (ids(before), ids(after))


def test_images_are_never_predicted(tmp_path: Path) -> None:
    import transformers

    folder = tiny.llava_folder(tmp_path / "llava")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a b"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "c d"}]}
    rows = [
        {"image": tiny.picture(0), "messages": [user, answer]},
        {"image": tiny.picture(1), "prompt": "a b", "completion": "c d"},
        {"prompt": "a b", "completion": " e"},
    ]
    found = examples(folder, tmp_path / "d.jsonl", *rows, model=model)
    for one in (found[0], found[1]):
        before, after = learned(one)
        assert before == ids("user <image> <image> <image> <image> a b </s> assistant")
        assert after == ids("c d </s>")
    batch = collate_labelled([found[k] for k in range(3)])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["labels"][2].tolist()[2:4] == ids("e </s>")
    assert (batch["labels"][2, 4:] == IGNORED).all()


def test_samples_without_anything_to_predict_are_left_out_and_counted(
    folder: Path, tmp_path: Path, caplog: Any
) -> None:
    rows = [{"prompt": "a", "completion": " e"}, {"text": ""}]
    found = examples(folder, tmp_path / "d.jsonl", *rows, max_length=4)
    assert (len(found), found.left_out) == (1, 1)
    assert "have nothing to predict" in caplog.text
    with pytest.raises(DataError, match="gives nothing to predict within 4 tokens"):
        examples(folder, tmp_path / "d.jsonl", rows[1], max_length=4)


def test_of_a_row_that_is_too_long_the_prompt_is_cut_first(folder: Path, tmp_path: Path, caplog: Any) -> None:
    row = {"prompt": "a b c d", "completion": " e f"}
    (found,) = examples(folder, tmp_path / "d.jsonl", row, max_length=5)
    assert learned(found) == (ids("c d"), ids("e f </s>"))
    assert "1 samples of `d.jsonl` have more than 5 tokens and were cut" in caplog.text


def test_rows_that_are_too_long_are_dropped_or_refused_where_that_is_asked(
    folder: Path, tmp_path: Path, caplog: Any
) -> None:
    rows = [{"prompt": "a b c d", "completion": " e"}, {"prompt": "a", "completion": " e"}]
    found = examples(folder, tmp_path / "d.jsonl", *rows, max_length=4, options=RowOptions(too_long="drop"))
    assert (len(found), found.left_out) == (1, 1)
    assert "1 samples of `d.jsonl` have more than 4 tokens and were dropped" in caplog.text
    with pytest.raises(DataError, match=r"row 1 of `d\.jsonl` has 6 tokens, more than 4"):
        examples(folder, tmp_path / "d.jsonl", *rows, max_length=4, options=RowOptions(too_long="error"))


def test_labels_of_ready_made_rows_say_what_is_learned(folder: Path, tmp_path: Path) -> None:
    row = {"input_ids": ids("a b c d x x"), "labels": [-100, -100, *ids("c d"), -100, -100], "attention_mask": [1] * 6}
    (found,) = examples(folder, tmp_path / "d.jsonl", row)
    assert learned(found) == (ids("a b x x"), ids("c d"))


def test_running_text_is_cut_and_learned_whole(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "d.txt"
    file.write_text("a b c d e f g")
    found = TrainingSet(open_rows(file), Encoder(folder, tiny.llama(), max_length=4))
    assert [learned(found[k])[1] for k in range(2)] == [ids("a b c d"), ids("e f g")]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [USER]}, "not the assistant's"),
        ({"messages": []}, "not a list of messages"),
        ({"prompt": [USER], "completion": []}, "not a list of messages"),
    ],
)
def test_rows_that_teach_nothing_are_refused(row: dict[str, Any], words: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        examples(folder, tmp_path / "d.jsonl", row)
