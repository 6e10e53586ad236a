"""Every kind of data file, through tokenizer, chat template and processor, to what the model is given."""

from __future__ import annotations

import base64
import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from sculpt.data.media import load_image
from sculpt.data.rows import chosen, open_rows
from sculpt.evaluate.evaluate import evaluate
from sculpt.fusion.errors import DataError, ModelError
from sculpt.hessian import CalibrationOptions, calibrate
from sculpt.hessian.session import Session
from sculpt.live.model import load_model
from tokenizers import Tokenizer, models, pre_tokenizers

from ..hessian import zoo
from ..training import tiny

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "user", "assistant", *"abcdefghijklmnopqrstuvwxyz", "\n"]
CHAT = (
    "{% for message in messages %}{{ message['role'] + ' ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }} {% endfor %}{% endif %}"
    " </s> {% endfor %}"
)


def tokenizer(*, image: bool = True, **given: Any) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of single letters between spaces."""
    plain = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"} if image else {},
        **given,
    )


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder, _ = zoo.settle(zoo.TEXT["llama"], tmp_path)
    tokenizer(chat_template=CHAT).save_pretrained(folder)
    return folder


def given(folder: Path, data: Path | None, **options: Any) -> list[dict[str, list[Any]]]:
    """Return what the model is given, sample by sample."""
    with Session(folder, CalibrationOptions(data=data, **options)) as session:
        return [{key: value[0].tolist() for key, value in sample.inputs.items()} for sample in session.samples]


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    picture(seed).save(stream, "PNG")
    return stream.getvalue()


def test_each_kind_of_text_row(llama: Path, tmp_path: Path) -> None:
    data = jsonl(
        tmp_path / "d.jsonl",
        {"text": "a b c"},
        {"prompt": "a b ", "completion": "d"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "c"}]},
        {"input_ids": [7, 8]},
        {"text": "a b c d e f g h", "label": 3},
    )
    found = [row["input_ids"] for row in given(llama, data, max_length=6)]
    assert found == [
        ids("a b c </s>"),
        ids("a b d </s>"),
        ids("user a </s> assistant b </s>"),
        ids("user a </s> assistant c </s>"),
        [7, 8],
        ids("a b c d e f"),
    ]


def test_running_text_is_cut_to_samples(llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "d.txt"
    text.write_text("a b c\nd e f g\n%%\n\n%%\nh i\n")
    assert [row["input_ids"] for row in given(llama, text, max_length=3)] == [
        ids("a b c"),
        ids("d e f"),
        ids("g"),
        ids("h i"),
    ]
    assert len(given(llama, text, max_length=3, samples=2)) == 2


def test_the_text_that_ships_is_the_default(llama: Path) -> None:
    hessian = calibrate(llama, samples=2, max_length=8)
    assert hessian.provenance.data == "calibration.txt"
    assert hessian.provenance.num_tokens == 16


def test_parquet_and_saved_data_sets_are_read_like_jsonl(llama: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"text": "a b"}, {"text": "c"}, {"text": "d e f"}]
    expected = given(llama, jsonl(tmp_path / "d.jsonl", *rows))
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "d.parquet", row_group_size=2)
    assert given(llama, tmp_path / "d.parquet") == expected
    folder = tmp_path / "saved"
    folder.mkdir()
    with pyarrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_files": None}
    (folder / "state.json").write_text(json.dumps(state))
    assert given(llama, folder) == expected


def test_an_encoder_decoder_gets_prompt_and_completion_apart(tmp_path: Path) -> None:
    folder, _ = zoo.settle(zoo.TEXT["t5"], tmp_path)
    tokenizer().save_pretrained(folder)
    data = jsonl(tmp_path / "d.jsonl", {"prompt": "a b", "completion": "c d e"}, {"text": "a b c"})
    found = given(folder, data)
    assert [(row["input_ids"], row["decoder_input_ids"]) for row in found] == [
        (ids("a b"), [0, *ids("c d e")]),
        (ids("a b"), [0, *ids("c")]),
    ]


def test_a_folder_of_images(tmp_path: Path) -> None:
    folder, _ = zoo.settle(zoo.MEDIA["vit"], tmp_path)
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    (tmp_path / "images/deep").mkdir(parents=True)
    picture(0).save(tmp_path / "images/a.png")
    picture(1).save(tmp_path / "images/deep/b.png")
    hessian = calibrate(folder, data=tmp_path / "images")
    assert hessian.provenance.num_samples == 2
    expected = np.asarray(picture(0), np.float32).transpose(2, 0, 1) / 255 * 2 - 1
    (first, _) = given(folder, tmp_path / "images")
    np.testing.assert_allclose(first["pixel_values"], expected, atol=1e-6)


def _llava(tmp_path: Path) -> Path:
    folder, _ = zoo.settle(zoo.MEDIA["llava"], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["image_token_index"] = config["image_token_id"] = WORDS.index("<image>")
    (folder / "config.json").write_text(json.dumps(config))
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)
    return folder


def test_images_with_text_through_the_processor(tmp_path: Path) -> None:
    folder = _llava(tmp_path)
    (tmp_path / "x.png").write_bytes(png())
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a b"}]}
    inline = {"role": "user", "content": [{"type": "image", "path": "x.png"}, {"type": "text", "text": "a b"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "c"}]}
    data = jsonl(
        tmp_path / "d.jsonl",
        {"image": "x.png", "prompt": "a b", "completion": "c"},
        {"image": "x.png", "prompt": "<image>\na b", "completion": "c"},
        {"images": ["x.png"], "messages": [user, answer]},
        {"messages": [inline, answer]},
        {"image": url, "messages": [user, answer]},
    )
    found = given(folder, data)
    assert found[0]["input_ids"] == [5, *[4] * 16, *ids("a b </s> assistant c </s>")]
    assert all(row == found[0] for row in found)
    hessian = calibrate(folder, data=data)
    vision = [name for name in hessian if "vision_tower" in name and name.endswith("fc1.weight")]
    assert hessian.provenance.num_tokens == 5 * 23
    assert hessian[vision[0]].num_tokens == 5 * 17
    with pytest.raises(DataError, match="would cut an image"):
        calibrate(folder, data=data, max_length=10)


def blip_folder(place: Path, language: Any = None) -> Path:
    """Write an InstructBLIP with its processor."""
    if language is None:
        folder, _ = zoo.settle(zoo.MEDIA["instruct-blip"], place)
    else:
        made = zoo.MEDIA["instruct-blip"].make().config.to_dict()
        folder, config = place, transformers.InstructBlipConfig(**{**made, "text_config": language.to_dict()})
        transformers.InstructBlipForConditionalGeneration(config).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["image_token_index"] = config["image_token_id"] = WORDS.index("<image>")
    (folder / "config.json").write_text(json.dumps(config))
    transformers.InstructBlipProcessor(
        transformers.BlipImageProcessorPil(size={"height": 16, "width": 16}),
        tokenizer(image=False),
        tokenizer(image=False),
        num_query_tokens=4,
    ).save_pretrained(folder)
    return folder


def test_instruct_blip_through_its_processor(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png())
    data = jsonl(tmp_path / "d.jsonl", {"image": "x.png", "prompt": "a b c", "completion": " d"})
    folder = blip_folder(tmp_path / "blip")
    hessian = calibrate(folder, data=data)
    assert any("qformer" in name for name in hessian)
    (row,) = given(folder, data)
    assert row["qformer_input_ids"] == ids("a b c")  # the instruction alone
    assert row["input_ids"][:4] == [4] * 4


VISUAL = {  # rows as docs/choosing-a-strength.md has them, by suite; each task with what it is scored by
    "VQAv2, OKVQA, TextVQA, VizWiz": (
        "{scorer: vqa, file: d.jsonl, max_new_tokens: 2, fields: {prompt: question}}",
        {"question": "a b", "answers": [{"answer": "c", "answer_confidence": "yes"}] * 10, "question_id": 7},
    ),
    "GQA, POPE": (
        "{scorer: exact-match, file: d.jsonl, max_new_tokens: 2, ignore_case: true, fields: {prompt: question}}",
        {"question": "a b", "answer": "Yes"},
    ),
    "ScienceQA, MM-Bench": (
        "{scorer: multiple-choice, file: d.jsonl, fields: {prompt: question}}",
        {"question": "a b", "choices": [" c", " d e"], "answer": 1},
    ),
    "captions as text": (
        "{scorer: perplexity, file: d.jsonl, score: probability}",
        {"prompt": "a b", "completion": " c d"},
    ),
}


T5 = transformers.T5Config(
    vocab_size=zoo.VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
)


@pytest.mark.parametrize("model", ["llava", "instruct-blip", "instruct-blip of T5"])
def test_every_scorer_sees_the_image(model: str, tmp_path: Path) -> None:
    if model == "llava":
        folder = tiny.llava_folder(tmp_path / "llava")
    else:
        folder = blip_folder(tmp_path / "blip", T5 if "T5" in model else None)
    (tmp_path / "x.png").write_bytes(png())
    with load_model(folder, device="cpu", dtype="float32") as live:
        for place, (task, row) in enumerate(VISUAL.values()):
            suite = tmp_path / f"{place}.yaml"
            suite.write_text(f"target: {{seen: {task}}}\n")
            jsonl(tmp_path / "d.jsonl", {**row, "image": "x.png"})
            (found,) = evaluate(live, suite).tasks
            assert found.num_rows == 1
            jsonl(tmp_path / "d.jsonl", {**row, "image": "not-there.png"})
            with pytest.raises(DataError, match=r"not-there\.png"):
                evaluate(live, suite)
            if place == 3:  # another image is another likelihood
                Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
                jsonl(tmp_path / "d.jsonl", {**row, "image": "red.png"})
                assert evaluate(live, suite).tasks[0].score != found.score


def test_sound_through_the_feature_extractor(tmp_path: Path) -> None:
    folder, _ = zoo.settle(zoo.MEDIA["whisper"], tmp_path)
    tokenizer().save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1, hop_length=400).save_pretrained(folder)
    sound = (np.sin(np.arange(8000) / 9) * 9000).astype("<i2")
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(sound.tobytes())
    data = jsonl(tmp_path / "d.jsonl", {"audio": "x.wav", "text": "a b"})
    (row,) = given(folder, data)
    assert np.shape(row["input_features"]) == (16, 40)
    assert row["decoder_input_ids"] == [1, *ids("a b")]
    as_array = jsonl(tmp_path / "e.jsonl", {"audio": {"array": (sound / 32768).tolist(), "sampling_rate": 16000}})
    np.testing.assert_allclose(given(folder, as_array)[0]["input_features"], row["input_features"], atol=1e-5)


REFUSED = {
    "no such file": ("nowhere.jsonl", None, "does not exist"),
    "another kind": ("d.doc", "a,b", "is of no known kind"),
    "empty": ("d.jsonl", "", "is empty"),
    "not JSON": ("d.jsonl", "{", r"row 1 of .* is not JSON"),
    "not an object": ("d.jsonl", "[1]", "row 1 of .* is not a JSON object"),
    "nothing known": ("d.jsonl", '{"label": 1}', "holds `label`; expected `text`"),
    "no number": (
        "d.jsonl",
        '{"input_ids": ["x"]}',
        "`input_ids` of row 1 of `d.jsonl` is not an array of whole numbers",
    ),
    "beyond the vocabulary": ("d.jsonl", '{"input_ids": [5, 99]}', "holds the token 99, but the model knows 99"),
    "no token": ("d.jsonl", '{"text": ""}', "gives no token"),
    "an image for a text model": ("d.jsonl", '{"image": "x.png"}', "takes none"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_data_are_refused_with_a_sentence(case: str, llama: Path, tmp_path: Path) -> None:
    name, content, message = REFUSED[case]
    (tmp_path / "x.png").write_bytes(png())
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        calibrate(llama, data=tmp_path / name)
    assert not caught.value.message.endswith(".")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("http://x/y.png", "does not use the network"),
        ("y.png", "No such file"),
        ("d.jsonl", "cannot be decoded"),
        ("data:image/png;base64,!", "damaged data URL"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("{}")
    with pytest.raises(DataError, match=message):
        load_image(source, tmp_path, "row 1")


def test_a_model_without_tokenizer_is_told_so(tmp_path: Path) -> None:
    folder, _ = zoo.settle(zoo.TEXT["llama"], tmp_path)
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        calibrate(folder, data=jsonl(tmp_path / "d.jsonl", {"text": "a"}))


def test_messages_need_a_chat_template(tmp_path: Path) -> None:
    folder, _ = zoo.settle(zoo.TEXT["llama"], tmp_path)
    tokenizer().save_pretrained(folder)
    data = jsonl(tmp_path / "d.jsonl", {"messages": [{"role": "user", "content": "a"}]})
    with pytest.raises(DataError, match="has no chat template"):
        calibrate(folder, data=data)


def test_rows_that_hold_nothing_are_replaced_by_others(llama: Path, tmp_path: Path) -> None:
    rows = [{"text": "" if k % 2 else "a b"} for k in range(10)]
    assert len(given(llama, jsonl(tmp_path / "d.jsonl", *rows), samples=4)) == 4


def test_rows_are_drawn_by_seed_and_nested() -> None:
    assert chosen(5, 1000, 0) == chosen(9, 1000, 0)[:5]
    assert chosen(5, 1000, 0) != chosen(5, 1000, 1)
    assert sorted(chosen(99, 7, 0)) == list(range(7))


def test_the_shipped_text_has_documents() -> None:
    rows = open_rows(None)
    assert rows.documents
    assert rows.count > 20
    assert all(rows.read(number)["text"].strip() for number in range(rows.count))


def test_torch_is_not_asked_for_the_network(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert calibrate(llama, data=jsonl(tmp_path / "d.jsonl", {"text": "a b"})).provenance.num_tokens == 3
    assert torch.is_grad_enabled()
