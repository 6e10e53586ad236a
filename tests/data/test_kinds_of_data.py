"""Files and layouts that people have: each gives the same tokens as our own JSON lines."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from sculpt.data.encoding import Encoder
from sculpt.data.example import Example
from sculpt.data.long_text import OVERLAP, PIECE, ids_of_long_text
from sculpt.data.rows import open_rows
from sculpt.data.sampling import draw_samples
from sculpt.fusion.errors import DataError
from sculpt.fusion.rows import RowOptions

from ..training import tiny

ROWS = [{"prompt": f"a b {letter}", "completion": f" {letter} é", "n": "1"} for letter in "cdefg"]
TURNS = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_csv(file: Path, *, delimiter: str = ",") -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(file: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=2)


def write_snapshot(folder: Path) -> None:
    """Write what the hub's data sets look like on a disk."""
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", ROWS[:3])
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", ROWS[3:])
    (folder / "README.md").write_text("a card")
    (folder / "dataset_infos.json").write_text("{}")


KINDS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "JSON": ("d.json", lambda file: file.write_text(json.dumps(ROWS, indent=1, ensure_ascii=False), encoding="utf-8")),
    "JSON on one line": ("d.json", lambda file: file.write_text(json.dumps(ROWS))),
    "JSON with a mark": ("d.json", lambda file: file.write_text("\ufeff" + json.dumps(ROWS), encoding="utf-8")),
    "JSON lines called JSON": ("d.json", lambda file: file.write_text(lines(ROWS))),
    "gzip": ("d.jsonl.gz", lambda file: file.write_bytes(gzip.compress(lines(ROWS).encode()))),
    "bzip2": ("d.json.bz2", lambda file: file.write_bytes(bz2.compress(json.dumps(ROWS).encode()))),
    "xz": ("d.jsonl.xz", lambda file: file.write_bytes(lzma.compress(lines(ROWS).encode()))),
    "CSV": ("d.csv", write_csv),
    "CSV with semicolons": ("d.csv", lambda file: write_csv(file, delimiter=";")),
    "TSV": ("d.tsv", lambda file: write_csv(file, delimiter="\t")),
    "Parquet": ("d.parquet", write_parquet),
    "a folder of shards": ("set", write_snapshot),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_holds_the_same_rows(kind: str, tmp_path: Path) -> None:
    name, write = KINDS[kind]
    write(tmp_path / name)
    rows = open_rows(tmp_path / name)
    for order in (range(5), [4, 0, 3, 1, 2, 2]):
        assert [dict(rows.read(number)) for number in order] == [ROWS[number] for number in order]


def test_a_json_array_longer_than_a_piece_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sculpt.data.formats.CHUNK", 16)
    rows = [{"text": "é[{,}]" * number, "n": {"a": [number]}} for number in range(20)]
    (tmp_path / "d.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    found = open_rows(tmp_path / "d.json")
    assert [dict(found.read(number)) for number in range(20)] == rows


def test_cells_of_a_csv_hold_line_breaks_and_quotes(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('text,label\n"a ""b""\n\nc, d",1\n\ne,\n', encoding="utf-8")
    rows = open_rows(tmp_path / "d.csv")
    assert [dict(rows.read(number)) for number in range(2)] == [{"text": 'a "b"\n\nc, d', "label": "1"}, {"text": "e"}]


BROKEN = {
    "an array that does not end": (
        "d.json",
        '[{"text": "a"}, {"te',
        "row 2 of .* is not JSON, or the array does not end",
    ),
    "an array of texts": ("d.json", '["a"]', "row 1 of .* is not a JSON object"),
    "a row that is too short": ("d.csv", "text,label\na\n", "row 1 of .* has 1 cells, and the header 2"),
    "no gzip": ("d.jsonl.gz", "text", "cannot read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_are_damaged_are_refused(case: str, tmp_path: Path) -> None:
    name, content, message = BROKEN[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        list(open_rows(tmp_path / name))


def test_one_of_several_splits_is_named(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "set")
    write_parquet(tmp_path / "set/data/test-00000-of-00001.parquet", ROWS[:1])
    with pytest.raises(DataError, match="holds several splits") as caught:
        open_rows(tmp_path / "set")
    assert "train`" in (caught.value.hint or "")
    assert [open_rows(tmp_path / "set/data" / split).count for split in ("train", "test")] == [5, 1]
    assert open_rows(tmp_path / "set" / "train").count == 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A model with a chat template, and one without."""
    chatty = tiny.llama_folder(tmp_path_factory.mktemp("chatty"))
    plain = tiny.llama_folder(tmp_path_factory.mktemp("plain"))
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    return {True: chatty, False: plain}


def encoder(folder: Path, **options: Any) -> Encoder:
    given = {key: options.pop(key) for key in ("max_length", "ends_texts") if key in options}
    return Encoder(folder, tiny.llama(), **{"max_length": 64, **given}, options=RowOptions(**options))


def told(found: Encoder, file: Path) -> list[str]:
    examples = [example for row in open_rows(file, fields=found.options.fields) for example in found.examples(row)]
    return [in_words(example) for example in examples]


def in_words(example: Example) -> str:
    return " ".join(tiny.WORDS[token] for token in example.tokens[0].tolist())


CHATS = {
    "messages as JSON": {"messages": json.dumps(TURNS)},
    "ShareGPT": {"conversations": [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c d"}]},
    "ShareGPT as JSON": {
        "conversations": json.dumps([{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c d"}])
    },
    "conversations with roles": {"conversations": TURNS},
    "Alpaca": {"instruction": "a b", "input": "", "output": "c d"},
    "a question": {"question": "a b", "answer": "c d"},
    "filled by Arrow": {"messages": [{**turn, "tool_calls": None} for turn in TURNS], "text": None},
    "notes beside it": {"messages": TURNS, "id": 7, "source": "x"},
}


@pytest.mark.parametrize("case", CHATS)
def test_chats_in_any_form_are_the_same_tokens(case: str, folders: dict[bool, Path], tmp_path: Path) -> None:
    file = tiny.write_rows(tmp_path / "d.jsonl", CHATS[case])
    assert told(encoder(folders[True]), file) == ["user a b </s> assistant c d </s>"]


def test_without_a_chat_template_alpaca_and_questions_are_text(folders: dict[bool, Path], tmp_path: Path) -> None:
    rows = [CHATS["a question"], {"instruction": "a", "input": "b", "output": "c"}]
    found = encoder(folders[False])
    file = tiny.write_rows(tmp_path / "d.jsonl", *rows)
    first, second = [found._templated(row) for row in open_rows(file)]
    assert (first.text("prompt"), first.text("completion")) == ("Question: a b\nAnswer:", " c d")
    assert second.text("prompt").endswith("### Instruction:\na\n\n### Input:\nb\n\n### Response:")
    assert second.text("completion") == "\nc"


def test_fields_are_named_otherwise(folders: dict[bool, Path], tmp_path: Path) -> None:
    file = tiny.write_rows(tmp_path / "d.jsonl", {"q": "a b", "a": " c"})
    assert told(encoder(folders[True], fields={"prompt": "q", "completion": "a"}), file) == ["a b c"]
    with pytest.raises(DataError, match="has no `x`, which `fields` names"):
        told(encoder(folders[True], fields={"prompt": "x"}), file)


def test_a_field_that_nothing_reads_is_an_error_by_name(
    folders: dict[bool, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tiny.write_rows(tmp_path / "d.jsonl", {"text": "a", "image_file": "x.png"}, {"text": "b", "image_file": "y"})
    with pytest.raises(DataError, match=r"row 1 of `d\.jsonl` holds `image_file`, which nothing reads"):
        told(encoder(folders[True]), file)
    assert told(encoder(folders[True], unknown_fields="ignore"), file) == ["a", "b"]
    assert caplog.text.count("is a field that sculpt does not know") == 1


def test_bad_rows_are_left_out_and_counted_where_that_is_asked(
    folders: dict[bool, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"text": "a"}\nno JSON\n{"text": 3}\n{"text": "\\ud83d"}\n{"text": "b"}\n')
    rows = open_rows(file)
    with pytest.raises(DataError, match="row 2"):
        draw_samples(rows, encoder(folders[True]), count=9, seed=0)
    found = draw_samples(rows, encoder(folders[True], bad_rows="skip"), count=9, seed=0)
    assert [example.what for example in found] == ["row 1 of `d.jsonl`", "row 5 of `d.jsonl`"]
    assert "3 rows of `d.jsonl` were left out; the first: row 2" in caplog.text
    file.write_text("no JSON\n")
    with pytest.raises(DataError, match="row 1"):
        draw_samples(open_rows(file), encoder(folders[True], bad_rows="skip"), count=9, seed=0)


def test_what_is_too_long_is_cut_and_said(
    folders: dict[bool, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chat = [{"role": "user", "content": "a b c d e f"}, {"role": "assistant", "content": "g h"}]
    file = tiny.write_rows(tmp_path / "d.jsonl", {"messages": chat}, {"prompt": "a b c d", "completion": " e f"})
    found = encoder(folders[True], max_length=5, ends_texts=True)
    samples = draw_samples(open_rows(file), found, count=9, seed=0)
    assert [in_words(sample) for sample in samples] == ["</s> assistant g h </s>", "c d e f </s>"]
    assert "2 samples of `d.jsonl` have more than 5 tokens and were cut" in caplog.text


def bpe() -> Any:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=_gpt2_like())


def _gpt2_like() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made: Any = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(split=False)  # as Llama 2's: one word, however long
    made.decoder = decoders.Metaspace()
    trainer: Any = trainers.BpeTrainer
    text = ["it was the best of times, it was the worst of times, it was the age of wisdom"] * 3
    made.train_from_iterator(text, trainer(vocab_size=90, special_tokens=["<unk>", "<s>"], show_progress=False))
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return made


def test_long_text_in_pieces_is_the_tokens_of_the_whole() -> None:
    words = ["it", "was", "the", "best", "of", "times", "the", "worst", "age", "wisdom"]
    text = " ".join(words[(k * k + k // 7) % len(words)] for k in range(PIECE))
    assert len(text) > 3 * PIECE > 3 * OVERLAP
    tokenizer = bpe()
    seen = []
    pieces = lambda text, **given: (seen.append(len(text)), tokenizer(text, **given))[1]  # noqa: E731
    pieces.is_fast = True  # pyright: ignore[reportFunctionMemberAccess]
    assert ids_of_long_text(pieces, text).tolist() == tokenizer(text)["input_ids"]
    assert max(seen) == PIECE  # what a tokenizer holds does not grow with the text
    assert ids_of_long_text(tokenizer, text).tolist() == tokenizer(text)["input_ids"]
