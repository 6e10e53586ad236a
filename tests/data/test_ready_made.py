"""Rows that hold a model's inputs ready-made, and statistics of completions alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sculpt.data.encoding import Encoder
from sculpt.data.example import IGNORED, Example
from sculpt.data.row import Row
from sculpt.data.sampling import digest_of
from sculpt.fusion.errors import DataError, ModelError
from sculpt.hessian import calibrate

from ..hessian import zoo, zoo_table
from ..training import tiny

IDS = [5, 9, 7, 12, 6, 8]
PAD = [0, 0, 0]
PADDED = {
    "behind": {"input_ids": [*IDS, *PAD], "attention_mask": [1] * 6 + PAD},
    "before": {"input_ids": [*PAD, *IDS], "attention_mask": PAD + [1] * 6},
    "with a batch axis": {"input_ids": [[*IDS, *PAD]], "attention_mask": [[1] * 6 + PAD]},
    "with positions": {"input_ids": [*PAD, *IDS], "attention_mask": PAD + [1] * 6, "position_ids": [*PAD, *range(6)]},
    "as floats": {"input_ids": [float(token) for token in [*IDS, *PAD]], "attention_mask": [1.0] * 6 + [0.0] * 3},
}
TYPED = {"input_ids": [*IDS, *PAD], "attention_mask": [1] * 6 + PAD, "token_type_ids": [0] * 9}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.settle(zoo.TEXT["llama"], tmp_path_factory.mktemp("llama"))[0]


def encoded(model: Any, row: dict[str, Any], max_length: int = 64) -> list[Example]:
    return Encoder(Path(), model, max_length=max_length).examples(Row(row, "row 1", Path()))


@pytest.fixture(scope="module")
def bert() -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    return transformers.BertForMaskedLM(transformers.BertConfig(**sizes, vocab_size=99))


@pytest.mark.parametrize("case", PADDED)
def test_padding_never_counts(case: str, llama: Path, tmp_path: Path) -> None:
    files = [tiny.write_rows(tmp_path / f"{k}.jsonl", row) for k, row in enumerate(({"input_ids": IDS}, PADDED[case]))]
    bare, padded = (calibrate(llama, data=file) for file in files)
    assert padded.provenance.num_tokens == len(IDS)
    for name in bare:
        for found, expected in zip(padded[name].terms, bare[name].terms, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_each_input_of_one_number_a_token_loses_its_padding(bert: Any) -> None:
    (found,) = encoded(bert, TYPED)
    assert {key: tuple(value.shape) for key, value in found.inputs.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (1, 6)
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": IDS, "image_position_ids": [1]}, "holds `image_position_ids`, which nothing reads"),
        ({"input_ids": IDS, "attention_mask": [1]}, "has 6 `input_ids` and an `attention_mask` of 1"),
        ({"input_ids": IDS, "labels": [1, 2]}, "has 6 `input_ids` and 2 `labels`"),
        ({"input_ids": [IDS, IDS]}, "is a batch of 2; a row is one sample"),
        ({"input_ids": ["a"]}, "`input_ids` of row 1 is not an array of whole numbers"),
        ({"input_ids": [5, -3, 99]}, "holds the token -3, but the model knows 99"),
        ({"pixel_values": [[[0.0]]]}, "holds `pixel_values`, which nothing reads|none of which"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(row: dict[str, Any], message: str, bert: Any) -> None:
    with pytest.raises(DataError, match=message):
        encoded(bert, row)


def test_an_empty_row_has_no_example(bert: Any) -> None:
    assert encoded(bert, {"input_ids": []}) == []
    assert encoded(bert, {"input_ids": [], "attention_mask": []}) == []


def test_labels_say_what_is_to_be_predicted_and_stay_when_a_row_is_cut() -> None:
    row = {"input_ids": [*IDS, *PAD], "attention_mask": [1] * 6 + PAD, "labels": [-100] * 4 + IDS[4:] + [-100] * 3}
    (found,) = encoded(tiny.llama(), row)
    assert found.answers[0].tolist() == [IGNORED] * 4 + [0, 0]
    (cut,) = encoded(tiny.llama(), row, max_length=3)
    assert cut.tokens[0].tolist() == [12, 6, 8]
    assert cut.answers[0].tolist() == [IGNORED, 0, 0]


def test_labels_of_an_encoder_decoder_are_what_its_decoder_is_to_say() -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    config = transformers.T5Config(vocab_size=99, **sizes, decoder_start_token_id=0, pad_token_id=0)
    model = transformers.T5ForConditionalGeneration(config)
    (found,) = encoded(model, {"input_ids": IDS, "labels": [7, 8, 1, -100]})
    assert found.inputs["decoder_input_ids"].tolist() == model._shift_right(torch.tensor([[7, 8, 1]])).tolist()
    assert found.tokens[0][found.answers[0] != IGNORED].tolist() == [7, 8, 1]


def test_tokens_beyond_the_vocabulary_that_have_embeddings_are_known() -> None:
    """Llama 3.2's image token is the first of eight beyond its vocabulary."""
    model = tiny.llama()
    size = model.config.vocab_size
    model.model.embed_tokens = torch.nn.Embedding(size + 8, 32)
    (found,) = encoded(model, {"input_ids": [size, size + 7]})
    assert found.num_tokens == 2
    with pytest.raises(DataError, match=f"holds the token {size + 8}, but the model knows {size + 8}"):
        encoded(model, {"input_ids": [size + 8]})


def test_images_in_bfloat16_have_a_digest() -> None:
    def example(value: float) -> Example:
        pixels = torch.full((1, 3, 2, 2), value, dtype=torch.bfloat16)
        nothing = torch.zeros(1, 0, dtype=torch.int64)
        return Example(inputs={"pixel_values": pixels}, tokens=nothing, answers=nothing)

    assert digest_of([example(1.0)]) == digest_of([example(1.0)]) != digest_of([example(2.0)])


def squares_of_completions(folder: Path, rows: list[dict[str, Any]], layer: str) -> np.ndarray:
    """Return Σ x² of a layer's inputs over the tokens that labels name, by a hook."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    total = torch.zeros(model.get_submodule(layer).weight.shape[1], dtype=torch.float64)
    for row in rows:
        seen: list[torch.Tensor] = []
        handle = model.get_submodule(layer).register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        with torch.no_grad():
            model(torch.tensor([row["input_ids"]]))
        handle.remove()
        kept = torch.tensor(row["labels"]) != IGNORED
        total += (seen[0][0][kept].double() ** 2).sum(0)
    return total.numpy()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_statistics_of_completions_alone(batch_size: int, llama: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length, read in ((9, 4), (32, 20), (8, 1), (5, 5)):  # 8 and 32 are sizes of the model, too
        ids = torch.randint(3, 99, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORED] * read + ids[read:]})
    file = tiny.write_rows(tmp_path / "d.jsonl", *rows)
    found = calibrate(llama, data=file, count="completion", batch_size=batch_size)
    assert found.provenance.num_samples == 3  # one has nothing to predict
    assert found.provenance.num_tokens == 5 + 12 + 7
    for layer in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head"):
        expected = squares_of_completions(llama, rows, layer)
        np.testing.assert_allclose(found[f"{layer}.weight"].terms[0][0], expected, rtol=1e-5)
        assert found[f"{layer}.weight"].num_tokens == 24


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_experts_are_measured_on_completions_alone(name: str, batch_size: int, tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT[name], tmp_path)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length, read in ((9, 4), (11, 6), (8, 1)):
        ids = torch.randint(3, 60, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORED] * read + ids[read:]})
    tiny.write_rows(data, *rows)
    found = calibrate(folder, data=data, count="completion", batch_size=batch_size)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager").eval()
    given: dict[int, list[torch.Tensor]] = {}
    experts = model.model.layers[0].mlp.experts
    for row in rows:
        kept = torch.tensor(row["labels"]) != IGNORED

        def note(_: Any, args: Any, kwargs: Any, kept: torch.Tensor = kept) -> None:
            hidden, chosen, *_ = (*args, *kwargs.values())
            for expert in range(experts.num_experts):
                mine = (chosen.reshape(len(kept), -1) == expert).any(-1) & kept
                given.setdefault(expert, []).append(hidden.reshape(len(kept), -1)[mine])

        handle = experts.register_forward_pre_hook(note, with_kwargs=True)
        with torch.no_grad():
            model(torch.tensor([row["input_ids"]]))
        handle.remove()
    for expert, inputs in given.items():
        expected = (torch.cat(inputs).double() ** 2).sum(0).numpy()
        if name == "mixtral":
            key = f"model.layers.0.block_sparse_moe.experts.{expert}.w1.weight"
            sums = found[key].terms[0].reshape(-1) if key in found else np.zeros(len(expected))
        else:
            stack = found["model.layers.0.mlp.experts.gate_up_proj"].terms[0]
            sums = stack[expert].reshape(-1)
        np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-9)


def test_completions_are_refused_where_experts_do_not_know_their_tokens(tmp_path: Path) -> None:
    animal = next(one for one in zoo_table.OTHERS if one.model == "JetMoeForCausalLM")
    folder, data = zoo.settle(animal, tmp_path)
    with pytest.raises(ModelError, match="do not know which tokens belong to a completion"):
        calibrate(folder, data=data, count="completion")


def without_padding() -> dict[str, Any]:
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2}
    return {
        "FNet": transformers.FNetForMaskedLM(transformers.FNetConfig(**sizes, intermediate_size=48)),
        "RWKV": transformers.RwkvForCausalLM(transformers.RwkvConfig(**sizes, context_length=64)),
    }


@pytest.mark.parametrize("name", ["FNet", "RWKV"])
def test_completions_are_measured_alike_in_batches_of_a_model_that_padding_changes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    without_padding()[name].save_pretrained(tmp_path / "m")
    rows = [list(range(5 + k, 5 + k + length)) for k, length in enumerate((7, 11, 13, 5, 7))]
    file = tiny.write_rows(tmp_path / "d.jsonl", *({"input_ids": ids, "labels": ids} for ids in rows))
    alone, batched = (calibrate(tmp_path / "m", data=file, count="completion", batch_size=size) for size in (1, 8))
    whole = calibrate(tmp_path / "m", data=file)
    assert set(alone) == set(batched) == set(whole)
    for key, curvature in whole.items():
        for found in (alone[key], batched[key]):
            for term, expected in zip(found.terms, curvature.terms, strict=True):
                np.testing.assert_allclose(term, expected, rtol=1e-5, atol=1e-6 * float(np.max(expected)))


def test_a_length_that_only_padding_could_tell_apart_is_refused(tmp_path: Path) -> None:
    without_padding()["FNet"].save_pretrained(tmp_path / "m")
    ids = list(range(5, 37))  # as many as the model is wide
    file = tiny.write_rows(tmp_path / "d.jsonl", {"input_ids": ids, "labels": [IGNORED, *ids[1:]]})
    with pytest.raises(DataError, match="no batch leaves room to tell its tokens"):
        calibrate(tmp_path / "m", data=file, count="completion")


def test_labels_say_what_is_to_be_predicted_to_a_model_that_takes_none(llama: Path) -> None:
    model = transformers.LlamaModel.from_pretrained(llama)
    (found,) = encoded(model, {"input_ids": [5, 6, 7, 8], "labels": [IGNORED, IGNORED, 7, 8]})
    assert found.num_predicted == 2
    assert "labels" not in found.inputs
