"""How far a model moved from its base, against what transformers' own logits say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sculpt
import torch
import transformers
from sculpt.data import general
from sculpt.data.example import Example
from sculpt.drift import movement as module
from sculpt.drift.divergence import divergences
from sculpt.drift.movement import movement
from sculpt.drift.reader import HowToRun, Reader
from sculpt.drift.remembered import remembered_logits
from sculpt.evaluate.against import moved_from
from sculpt.fusion import cache as fusion_cache
from sculpt.fusion.checkpoint import open_checkpoint
from sculpt.fusion.errors import DataError, ModelError

from ..evaluate.conftest import Pair, llama, save

HOW = HowToRun(device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCULPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("moved")
    model = llama(0)
    base = save(model, folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return Pair(base=base, tuned=save(model, folder / "tuned"))


def logits(folder: Path, ids: list[int]) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].double().numpy()


def test_divergence_is_that_of_the_next_tokens_that_are_to_be_predicted(pair: Pair, tmp_path: Path) -> None:
    rows = [{"prompt": "The sky is", "completion": " blue."}, {"prompt": "Grass", "completion": " is green, mostly."}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = moved_from(pair.base, pair.tuned, HOW, data=[file]).kinds
    tokenizer = transformers.AutoTokenizer.from_pretrained(pair.base)
    apart, same = [], []
    for row in rows:
        ids = tokenizer(row["prompt"] + row["completion"]).input_ids
        start = len(tokenizer(row["prompt"], add_special_tokens=False).input_ids)
        before, after = (
            x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (logits(f, ids) for f in (pair.base, pair.tuned))
        )
        places = slice(start - 1, len(ids) - 1)
        apart += [*(np.exp(before) * (before - after)).sum(-1)[places]]
        same += [*(before.argmax(-1) == after.argmax(-1))[places]]
    assert (found.kind, found.num_tokens) == ("rows.jsonl", len(apart))
    assert found.divergence == pytest.approx(np.mean(apart), rel=1e-4)
    assert found.same == pytest.approx(np.mean(same))
    (itself,) = moved_from(pair.base, pair.base, HOW, data=[file]).kinds
    assert (itself.divergence, itself.same) == (0, 1)


def test_rows_that_were_measured_are_not_compared(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Example] = []

    def watched(before: Iterator[torch.Tensor], after: Iterator[torch.Tensor], groups: list[list[Example]]) -> object:
        seen.extend(example for group in groups for example in group)
        return divergences(before, after, groups)

    monkeypatch.setattr(module, "divergences", watched)
    base, size = open_checkpoint(pair.base), len(general.texts("csv"))
    movement(base, pair.tuned, HOW, kinds=["csv"])
    first, seen = {digest_of(example) for example in seen}, []
    monkeypatch.setattr(module, "divergences", watched)
    found = movement(base, pair.tuned, HOW, kinds=["csv", "logs"], measured=[(0, {"csv": 5})])
    assert first.isdisjoint(digest_of(example) for example in seen)
    assert {moved.kind for moved in found.kinds} == {"csv", "logs"}
    assert all(moved.num_tokens >= module.TOKENS for moved in found.kinds)
    found = movement(base, pair.tuned, HOW, kinds=["csv", "logs"], measured=[(0, {"csv": size})])
    assert ([moved.kind for moved in found.kinds], found.without) == (["logs"], ("csv",))
    with pytest.raises(DataError, match="no rows are left"):
        movement(base, pair.tuned, HOW, kinds=["csv"], measured=[(0, {"csv": size})])


def digest_of(example: Example) -> bytes:
    return example.inputs["input_ids"].numpy().tobytes()


def test_a_fuse_says_of_each_kind_how_far_it_moved_and_eval_says_the_same(pair: Pair, tmp_path: Path) -> None:
    def fused(name: str, **given: object) -> dict[str, object]:
        calibration = sculpt.Calibration(
            protect="default", protect_samples=16, protect_kinds=("csv",), max_length=64, device="cpu", **given
        )  # fmt: skip
        sculpt.fuse(
            pair.base, pair.tuned, output=tmp_path / name, calibration=calibration, protection=sculpt.Protection(),
            method=sculpt.AdaDare(gamma=1, sparsity=0),
        )  # fmt: skip
        return json.loads((tmp_path / name / "sculpt-manifest.json").read_text())

    moved = fused("checked")["moved"]
    assert [kind["kind"] for kind in moved["kinds"]] != sorted(general.kinds())
    assert {kind["kind"] for kind in moved["kinds"]} == set(general.kinds())
    apart = [kind["divergence"] for kind in moved["kinds"]]
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] > 0
    assert fused("unchecked", protect_check=False)["moved"] is None
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("checked", "unchecked")]
    assert weights[0] == weights[1]
    assert moved_from(pair.base, tmp_path / "checked", HowToRun(device="cpu")).as_json() == moved


def test_a_fuse_says_how_much_is_kept_of_what_was_gained_on_rows_that_were_not_measured(
    pair: Pair, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    texts = [{"text": text[:40]} for text in general.texts("novels")[:12]]
    data.write_text("".join(json.dumps(row) + "\n" for row in texts))

    def gain(samples: int, weight: float) -> dict[str, float] | None:
        calibration = sculpt.Calibration(
            data=data, samples=samples, protect="default", protect_samples=16, protect_kinds=("csv",), max_length=64,
            device="cpu",
        )  # fmt: skip
        output = tmp_path / f"{samples}-{weight}"
        protection = sculpt.Protection(weight=weight)
        sculpt.fuse(pair.base, pair.tuned, output=output, calibration=calibration, protection=protection)
        return json.loads((output / "sculpt-manifest.json").read_text())["moved"].get("gain")

    tuned, between = gain(8, 0.0), gain(8, 1.0)
    assert tuned is not None
    assert between is not None
    assert tuned["rows"] == 4
    assert tuned["fused"] == tuned["tuned"] != tuned["base"]
    assert (between["base"], between["tuned"]) == (tuned["base"], tuned["tuned"])
    assert between["fused"] != tuned["fused"]
    assert gain(12, 1.0) is None


def test_what_a_base_predicts_is_read_from_the_cache_and_says_the_same(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = open_checkpoint(pair.base)
    first = movement(base, pair.tuned, HOW, kinds=["csv", "logs"])
    read: list[Path] = []

    def logits(reader: Reader, *given: object, **named: object) -> Iterator[torch.Tensor]:
        read.append(reader.checkpoint.path)
        return whole(reader, *given, **named)  # pyright: ignore[reportArgumentType]

    whole = Reader.logits
    monkeypatch.setattr(Reader, "logits", logits)
    assert movement(base, pair.tuned, HOW, kinds=["csv", "logs"]) == first
    assert read == [pair.tuned]
    (kept,) = (fusion_cache.default_cache() / "read").iterdir()
    kept.write_bytes(b"torn")
    assert movement(base, pair.tuned, HOW, kinds=["csv", "logs"]) == first
    assert {*read[1:]} == {pair.tuned, pair.base}


def test_logits_that_are_more_than_the_output_layer_gives_are_not_kept(tmp_path: Path) -> None:
    config = transformers.Gemma2Config(
        vocab_size=257, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5, dtype="float32",
    )  # fmt: skip
    torch.manual_seed(0)
    base = save(transformers.Gemma2ForCausalLM(config), tmp_path / "base")
    with Reader(open_checkpoint(base), HOW) as reader:
        (found,) = remembered_logits(reader, [[Example.of_tokens([5, 6, 7, 8], [0, 0, 0, 0])]])
    np.testing.assert_allclose(found.numpy(), logits(base, [5, 6, 7, 8])[:3], atol=1e-5)
    assert found.abs().max() <= 0.5
    assert not (fusion_cache.default_cache() / "read").exists()


def test_models_that_cannot_be_compared_are_refused(pair: Pair, tmp_path: Path) -> None:
    other = save(llama(1), tmp_path / "other")
    tokens = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    first, second = [*vocabulary][5:7]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(ModelError, match="cannot be compared"):
        movement(open_checkpoint(pair.base), other, HOW, kinds=["csv"])
    broken = llama(0)
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(ModelError, match="are not finite"):
        movement(open_checkpoint(pair.base), save(broken, tmp_path / "broken"), HOW, kinds=["csv"])
