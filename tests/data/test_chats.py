"""Chats with pictures and sound are the tokens that the model's own processor makes of them."""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from sculpt.data.encoding import Encoder
from sculpt.data.example import IGNORED, Example
from sculpt.data.layouts import in_our_words
from sculpt.data.media import load_image
from sculpt.data.row import Row
from sculpt.fusion.errors import DataError
from sculpt.fusion.rows import RowOptions

from ..training import tiny

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<img>", "<snd>", "<row>", "<glob>", "<on>", "<off>", "<end>"]
PIECES = [f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)]
WORDS = [*SPECIAL, "<image>", *PIECES, "user", "assistant", "system", "tools", "think", *"abcdefgh", "0", "x"]
# With `<s>`, and with tools and an argument of its own.
TEMPLATE = (
    "{{ bos_token }}{% if tools %}tools {% for t in tools %}{{ t.name }} {% endfor %}{% endif %}"
    "{% if thinks %}think {% endif %}{% for m in messages %}{{ m.role }} "
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<img> {% elif p.type == 'audio' %}<snd> {% else %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endif %} </s> {% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(WORDS) + 8, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "max_position_embeddings": 512,
}  # fmt: skip
SEEN = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8}


def tokenizer(**special: str) -> Any:
    """Return a tokenizer that puts `<s>` before a text, unless it is told not to."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words: Any = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=special,
    )  # fmt: skip
    found.add_special_tokens({"additional_special_tokens": [*SPECIAL[4:], "<image>", *PIECES]})
    return found


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A processor, and the model that it is of."""

    processor: Callable[[], Any]
    model: Callable[[], Any]
    image: str = "<img>"  # what stands for an image in its chats


def llama() -> Any:
    return transformers.LlamaConfig(**SIZES)


def llava() -> Kind:
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return Kind(
        processor=lambda: transformers.LlavaProcessor(
            images, tokenizer(image_token="<img>"), patch_size=8, vision_feature_select_strategy="default",
            num_additional_image_tokens=1, image_token="<img>",
        ),
        model=lambda: transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**SEEN, image_size=16, projection_dim=32), text_config=llama(),
            image_token_index=4,
        )),
    )  # fmt: skip


def gemma3() -> Kind:
    special = {"image_token": "<img>", "boi_token": "<on>", "eoi_token": "<off>"}
    return Kind(
        processor=lambda: transformers.Gemma3Processor(
            transformers.Gemma3ImageProcessorPil(size={"height": 16, "width": 16}), tokenizer(**special),
            image_seq_length=4,
        ),
        model=lambda: transformers.Gemma3ForConditionalGeneration(transformers.Gemma3Config(
            text_config=transformers.Gemma3TextConfig(**SIZES), mm_tokens_per_image=4, image_token_index=4,
            vision_config=transformers.SiglipVisionConfig(**SEEN, image_size=16),
        )),
        image="<on>",
    )  # fmt: skip


def idefics3() -> Kind:
    special = {
        "image_token": "<image>", "fake_image_token": "<row>", "global_image_token": "<glob>",
        "end_of_utterance_token": "<end>",
    }  # fmt: skip
    images = transformers.Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, do_image_splitting=True
    )
    return Kind(
        processor=lambda: transformers.Idefics3Processor(images, tokenizer(**special), image_seq_len=4),
        model=lambda: transformers.Idefics3ForConditionalGeneration(transformers.Idefics3Config(
            text_config=llama(), vision_config={**SEEN, "image_size": 16}, image_token_id=11, scale_factor=1,
        )),
        image="<image>",
    )  # fmt: skip


def mistral3() -> Kind:
    special = {"image_token": "<img>", "image_break_token": "<row>", "image_end_token": "<end>"}
    images = transformers.PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size={"height": 8, "width": 8})
    return Kind(
        processor=lambda: transformers.PixtralProcessor(
            images, tokenizer(**special), patch_size=8, image_token="<img>", image_break_token="<row>",
            image_end_token="<end>",
        ),
        model=lambda: transformers.Mistral3ForConditionalGeneration(transformers.Mistral3Config(
            text_config=transformers.MistralConfig(**SIZES), image_token_index=4, spatial_merge_size=1,
            vision_config=transformers.PixtralVisionConfig(**SEEN, head_dim=8, image_size=32),
        )),
    )  # fmt: skip


def qwen2_audio() -> Kind:
    heard = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    return Kind(
        processor=lambda: transformers.Qwen2AudioProcessor(
            heard, tokenizer(), audio_token="<snd>", audio_bos_token="<on>", audio_eos_token="<off>"
        ),
        model=lambda: transformers.Qwen2AudioForConditionalGeneration(transformers.Qwen2AudioConfig(
            text_config=transformers.Qwen2Config(**SIZES), audio_token_index=5,
            audio_config={"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 48,
                          "num_mel_bins": 16, "max_source_positions": 50},
        )),
    )  # fmt: skip


SIGHTED = {"llava": llava, "gemma3": gemma3, "idefics3": idefics3, "mistral3": mistral3}
KINDS = {**SIGHTED, "qwen2-audio": qwen2_audio}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("chats")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 16, 3), dtype=np.uint8)).save(found / "x.png")
    sound = (np.sin(np.arange(8000) / 9) * 9000).astype("<i2")
    with wave.open(str(found / "x.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(sound.tobytes())
    for name, make in KINDS.items():
        try:
            processor = make().processor()
        except ImportError:  # some need torchvision
            continue
        processor.chat_template = TEMPLATE.replace("<img>", make().image)
        processor.save_pretrained(found / name)
    return found


def encoder(folder: Path, name: str, **options: Any) -> Encoder:
    with torch.device("meta"):
        model = KINDS[name]().model()
    length = options.pop("max_length", 512)
    return Encoder(folder / name, model, max_length=length, options=RowOptions(**options))


def only(folder: Path, name: str, row: dict[str, Any], **options: Any) -> Example:
    (found,) = encoder(folder, name, **options).examples(Row(in_our_words(row, "row 1"), "row 1", folder))
    return found


def chat(kind: str, source: Any) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": "a "}, {"type": kind, kind: source}, {"type": "text", "text": "b c"}]
    said = {"role": "assistant", "content": [{"type": "text", "text": "d e"}]}
    return [{"role": "user", "content": parts}, said]


def source(folder: Path, name: str) -> tuple[str, Any]:
    """Return the kind of what the model sees or hears, and what its processor takes."""
    if name in SIGHTED:
        return "image", Image.open(folder / "x.png")
    with wave.open(str(folder / "x.wav")) as file:
        return "audio", np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("leads", [True, False], ids=["a template with <s>", "a template without"])
def test_a_chat_is_what_the_processor_makes_of_it(leads: bool, name: str, folder: Path, tmp_path: Path) -> None:
    if not (folder / name).is_dir():
        pytest.skip("its processor needs torchvision")
    kind, loaded = source(folder, name)
    template = (TEMPLATE if leads else TEMPLATE.removeprefix("{{ bos_token }}")).replace("<img>", KINDS[name]().image)
    (tmp_path / "template.jinja").write_text(template)
    processor = transformers.AutoProcessor.from_pretrained(folder / name)
    expected = processor.apply_chat_template(
        chat(kind, loaded), tokenize=True, return_dict=True, return_tensors="pt", chat_template=template
    )
    named = "x.png" if kind == "image" else "x.wav"
    found = only(folder, name, {"messages": chat(kind, named)}, chat_template=str(tmp_path / "template.jinja"))
    assert found.inputs["input_ids"].tolist() == expected["input_ids"].tolist()
    assert found.inputs["input_ids"][0].tolist().count(1) == 1
    for key, value in found.inputs.items():
        torch.testing.assert_close(value, expected[key])
    said = found.tokens[0][found.answers[0] != IGNORED].tolist()
    assert [WORDS[token] for token in said] == ["d", "e", "</s>"]


def _forms(folder: Path) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode((folder / "x.png").read_bytes()).decode()
    image, sound = {"type": "image"}, base64.b64encode((folder / "x.wav").read_bytes()).decode()
    return {
        "path": {**image, "path": "x.png"},
        "url": {**image, "url": url},
        "file url": {**image, "url": f"file://{folder / 'x.png'}"},
        "image_url": {"type": "image_url", "image_url": {"url": url}},
        "image_url as text": {"type": "image_url", "image_url": url},
        "input_image": {"type": "input_image", "image_url": url},
        "base64": {**image, "base64": url.partition(",")[2]},
        "Qwen's": {"image": "x.png"},
        "datasets'": {**image, "image": {"bytes": (folder / "x.png").read_bytes(), "path": None}},
        "filled by Arrow": {**image, "image": "x.png", "text": None, "video": None},
        "audio_url": {"type": "audio_url", "audio_url": {"url": "x.wav"}},
        "input_audio": {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
    }


@pytest.mark.parametrize("form", ["path", "url", "file url", "image_url", "image_url as text", "input_image", "base64", "Qwen's", "datasets'", "filled by Arrow", "audio_url", "input_audio"])  # fmt: skip # noqa: E501
def test_every_form_of_a_part_is_seen_or_heard(form: str, folder: Path) -> None:
    name, kind, named = ("qwen2-audio", "audio", "x.wav") if "audio" in form else ("llava", "image", "x.png")
    messages = chat(kind, named)
    expected = only(folder, name, {"messages": messages})
    messages[0]["content"][1] = _forms(folder)[form]
    found = only(folder, name, {"messages": messages})
    assert found.inputs.keys() == expected.inputs.keys()
    assert all(torch.equal(found.inputs[key], expected.inputs[key]) for key in found.inputs)


PLACED = {
    "beside parts": {"image": "x.png", "messages": [{"role": "user", "content": [{"type": "image"}, "a"]}]},
    "in a text": {"images": ["x.png"], "messages": [{"role": "user", "content": "<image>\na"}]},
    "in ShareGPT's": {"image": "x.png", "conversations": [{"from": "human", "value": "<image>\na"}]},
    "nowhere": {"images": ["x.png"], "messages": [{"role": "user", "content": "a"}]},
    "in a prompt": {"image": "x.png", "prompt": "a", "completion": " b"},
}


@pytest.mark.parametrize("case", PLACED)
def test_images_beside_a_chat_are_in_their_places(case: str, folder: Path) -> None:
    found = only(folder, "llava", PLACED[case])
    assert [WORDS[token] for token in found.tokens[0].tolist()[:7]] == ["<s>", "user", *["<img>"] * 4, "a"]
    assert found.inputs["pixel_values"].shape[0] == 1


REFUSED = {
    "a part of another type": (
        {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
        "of type `document`",
    ),
    "no source": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "has 0 of `image`, and its messages have places for 1",
    ),
    "too many": (
        {"images": ["x.png"] * 2, "messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "places for 1",
    ),
    "sound": (
        {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "x.wav"}]}]},
        "holds sound, which `LlavaProcessor` does not take",
    ),
    "the network": ({"messages": chat("image", "https://x/y.png")}, "does not use the network"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_model_would_not_see_is_refused(case: str, folder: Path) -> None:
    row, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        only(folder, "llava", row)


def test_a_row_without_its_images_is_text(folder: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    bare = only(folder, "llava", {"messages": messages})
    assert [WORDS[token] for token in bare.tokens[0].tolist()] == ["<s>", "user", "a", "</s>", "assistant", "b", "</s>"]
    assert torch.equal(only(folder, "llava", {"messages": messages, "images": []}).tokens, bare.tokens)


def test_a_prompt_that_is_too_long_loses_no_image(folder: Path) -> None:
    row = {"messages": chat("image", "x.png")}
    with pytest.raises(DataError, match="would cut an image"):
        only(folder, "llava", row, max_length=6)
    assert encoder(folder, "llava", max_length=6, too_long="drop").examples(Row(row, "row 1", folder)) == []


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model with two chat templates, of which one is for tools."""
    found = tmp_path_factory.mktemp("texts")
    words = tokenizer()
    words.chat_template = {"default": TEMPLATE.replace("{% if tools %}", "{% if false %}"), "tool_use": TEMPLATE}
    words.save_pretrained(found)
    return found


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
TOOLS = [{"name": "c", "description": ""}]
TOLD = {
    "nothing": ({}, {}, {}),
    "tools": ({"tools": TOOLS}, {}, {"tools": TOOLS}),
    "tools as JSON": ({"tools": json.dumps(TOOLS)}, {}, {"tools": TOOLS}),
    "an argument of the row": ({"chat_template_kwargs": {"thinks": True}}, {}, {"thinks": True}),
    "an argument": ({}, {"template_arguments": {"thinks": True}}, {"thinks": True}),
    "a template by name": ({}, {"chat_template": "tool_use"}, {"chat_template": "tool_use"}),
}


@pytest.mark.parametrize("case", TOLD)
def test_templates_are_told_what_rows_and_options_say(case: str, texts: Path) -> None:
    row, options, told = TOLD[case]
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(llama())
    made = Encoder(texts, model, max_length=64, options=RowOptions(**options))
    (found,) = made.examples(Row(in_our_words({"messages": TURNS, **row}, "row 1"), "row 1", texts))
    words = transformers.AutoTokenizer.from_pretrained(texts)
    expected = words.apply_chat_template(TURNS, tokenize=True, return_dict=True, **told)["input_ids"]
    assert found.tokens[0].tolist() == expected


def test_tools_that_a_template_passes_over_and_templates_that_are_not_there_are_refused(texts: Path) -> None:
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(llama())
    row = Row({"messages": TURNS, "tools": TOOLS}, "row 1", texts)
    with pytest.raises(DataError, match="holds `tools`, which the chat template does not use"):
        Encoder(texts, model, max_length=64, options=RowOptions(chat_template="default")).examples(row)
    with pytest.raises(DataError, match="`other` is neither a file nor"):
        Encoder(texts, model, max_length=64, options=RowOptions(chat_template="other")).examples(row)


def test_images_are_turned_upright(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((24, 40, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=exif)
    assert load_image(stream.getvalue(), tmp_path, "row 1").size == (24, 40)
    assert load_image(tiny.picture(0), tmp_path, "row 1").size == (16, 16)
