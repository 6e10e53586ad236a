"""The general set as a model sees it: its own answers to the questions of the set."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sculpt
import torch
import transformers
from sculpt.data import general
from sculpt.data.encoding import Encoder
from sculpt.data.rows import Rows
from sculpt.data.sampling import draw_samples, tokens_by_kind
from sculpt.fusion.checkpoint import open_checkpoint
from sculpt.fusion.errors import DataError, MethodError
from sculpt.live.model import LiveModel, load_model
from sculpt.predict import answers
from sculpt.predict.general import general_rows

from ..data.test_chats import KINDS, TEMPLATE
from ..training import tiny

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% endif %}"
)
Draw = Callable[..., tuple[list[Any], Rows]]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCULPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny Llama of bytes that chats."""
    from sculpt.demo.tiny import byte_tokenizer

    folder = tmp_path_factory.mktemp("models") / "base"
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    tiny.llama(
        vocab_size=len(tokenizer), max_position_embeddings=1024, initializer_range=0.4,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def rows_of(folder: Path, load: Callable[[], LiveModel] | None = None, **given: Any) -> AbstractContextManager[Rows]:
    return general_rows(
        open_checkpoint(folder), encoder_of(folder), load=load or (lambda: load_model(folder, device="cpu")), **given
    )


def encoder_of(folder: Path) -> Encoder:
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config)
    return Encoder(folder, model, max_length=64)


def drawn(folder: Path, load: Callable[[], LiveModel] | None = None, *, count: int = 64, **given: Any) -> list[Any]:
    with rows_of(folder, load, **given) as rows:
        return draw_samples(rows, encoder_of(folder), count=count, seed=0)


def no_model() -> LiveModel:
    raise AssertionError("every answer is known")


def test_chats_are_the_questions_with_the_models_own_greedy_answers(base: Path) -> None:
    with rows_of(base) as rows:
        row = rows.row(rows.kinds["chats"][3])
        (example,) = encoder_of(base).unlimited().examples(row)
    question = general.texts("questions")[3]
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    prompt = tokenizer(f"<user>{question}</><assistant>", return_tensors="pt").input_ids
    written = model.generate(prompt, max_new_tokens=answers.MAX_TOKENS, do_sample=False)[0, prompt.shape[1] :]
    answer = tokenizer.decode(written, skip_special_tokens=True).lstrip()
    assert tokenizer.decode(example.inputs["input_ids"][0]) == f"<user>{question}</><assistant>{answer}</>"


def test_chats_have_four_times_the_tokens_of_a_kind_of_texts(base: Path) -> None:
    counts = tokens_by_kind(drawn(base, count=8))
    assert counts.pop("chats") == 4 * (8 * 64 // 32)
    assert counts == dict.fromkeys(general.kinds(), 8 * 64 // 32)


def test_answers_are_given_once(base: Path) -> None:
    first, second = (drawn(base, load, kinds=["csv", "chats"]) for load in (None, no_model))
    assert sculpt.data.sampling.digest_of(first) == sculpt.data.sampling.digest_of(second)


def test_a_killed_run_goes_on_after_its_last_answer(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "BATCH", 2)
    monkeypatch.setattr(answers, "MAX_TOKENS", 6)
    whole = drawn(base, count=6, kinds=["chats"])
    (file,) = (Path(sculpt.fusion.cache.default_cache()) / "answers").iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:-5])  # cut within a line
    again = drawn(base, count=6, kinds=["chats"])
    assert sculpt.data.sampling.digest_of(again) == sculpt.data.sampling.digest_of(whole)
    assert file.read_bytes().splitlines(keepends=True)[:3] == lines[:3]
    assert len(file.read_bytes().splitlines()) <= len(lines) + 1


def test_another_model_gives_its_own(base: Path, tmp_path: Path) -> None:
    drawn(base, count=1, kinds=["chats"])
    other = tmp_path / "other"
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.flip(0))
    model.save_pretrained(other)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(other)
    with pytest.raises(AssertionError, match="every answer"):
        drawn(other, no_model, count=1, kinds=["chats"])


def test_without_a_template_or_when_told_so_the_texts_alone_are_drawn(base: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    transformers.AutoModelForCausalLM.from_pretrained(base).save_pretrained(plain)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(plain)
    found = drawn(plain, no_model, count=8)
    assert set(tokens_by_kind(found)) == set(general.kinds())
    told = drawn(base, no_model, count=8, chats=False)
    assert sculpt.data.sampling.digest_of(told) == sculpt.data.sampling.digest_of(found)
    with pytest.raises(DataError, match="`chats` of the general set do not suit `LlamaForCausalLM`, which has no chat"):
        drawn(plain, no_model, kinds=["csv", "chats"])
    with pytest.raises(DataError, match="answers are switched off"):
        drawn(base, no_model, kinds=["chats"], chats=False)


def test_named_kinds_are_all_there_is(base: Path) -> None:
    assert set(tokens_by_kind(drawn(base, no_model, count=8, kinds=["csv"]))) == {"csv"}
    assert set(tokens_by_kind(drawn(base, count=8, kinds=["csv", "chats"]))) == {"csv", "chats"}


@pytest.mark.parametrize(("name", "kind"), [("llava", "images"), ("qwen2-audio", "sounds")])
def test_what_sees_or_hears_is_shown_or_played_and_never_cut(name: str, kind: str, tmp_path: Path) -> None:
    made = KINDS[name]()
    folder = tmp_path / name
    model = made.model()
    model.generation_config.max_length = None
    model.save_pretrained(folder)
    processor = made.processor()
    processor.chat_template = TEMPLATE.replace("<img>", made.image)
    processor.save_pretrained(folder)
    found = drawn(folder, kinds=[kind, "chats", "csv"], count=4)
    media = [sample for sample in found if sample.kind == kind]
    assert media
    assert all(set(sample.inputs) > {"input_ids", "attention_mask"} for sample in media)
    assert {sample.kind for sample in found} == {kind, "chats", "csv"}
    counts = tokens_by_kind(found)
    assert counts[kind] >= 8 * counts["csv"]  # the last is whole


def test_the_pictures_are_of_one_size_and_the_wheel_holds_little_of_them() -> None:
    from io import BytesIO

    from PIL import Image

    rows = general.asked("images")
    assert {Image.open(BytesIO(row["image"])).size for row in rows} == {(160, 160)}
    assert sum(map(len, {row["image"] for row in rows})) < 60_000
    assert len({row["audio"]["array"].tobytes() for row in general.asked("sounds")}) == 12


def test_a_fuse_says_how_many_answers_protect_its_base(base: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(tuned)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(tuned)

    def fused(name: str, **given: Any) -> dict[str, Any]:
        given = {"protect": "default", "protect_samples": 16, "max_length": 64, "device": "cpu", **given}
        calibration = sculpt.Calibration(**given)
        sculpt.fuse(
            base, tuned, output=tmp_path / name, calibration=calibration, protection=sculpt.Protection(),
            method=sculpt.AdaDare(gamma=1, sparsity=0),
        )  # fmt: skip
        return json.loads((tmp_path / name / "sculpt-manifest.json").read_text())["curvature"]["general"]

    whole, again = fused("again", protect=["default", "default/chats:3"])
    assert again["kinds"] == [kind for kind in whole["kinds"] if kind[0] == "chats"]  # as many tokens: the same chats
    assert again["kind_samples"] == [kind for kind in whole["kind_samples"] if kind[0] == "chats"]
    chats = fused("with", protect_kinds=["csv", "chats"])
    without = fused("without", protect_kinds=["csv"], protect_chats=False)
    assert chats["kinds"] == [["chats", 819], ["csv", 204]]
    assert dict(chats["kind_samples"])["chats"] > 1
    assert set(dict(without["kind_samples"])) == {"csv"}
    weights = [
        np.concatenate([v.ravel() for v in load(tmp_path / name)]) for name in ("with", "without") for load in (read,)
    ]
    assert not np.array_equal(*weights)
    with pytest.raises(MethodError, match="`protect_chats` is an option of the general set"):
        sculpt.Calibration(protect="other.jsonl", protect_chats=False)


def read(folder: Path) -> list[np.ndarray]:
    from safetensors.numpy import load_file

    return [*load_file(folder / "model.safetensors").values()]
