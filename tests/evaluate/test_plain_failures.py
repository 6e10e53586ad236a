"""What cannot be scored is refused with a sentence, and what only a library minds is scored."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from sculpt.demo.tiny import byte_tokenizer
from sculpt.evaluate.evaluate import score_suite
from sculpt.evaluate.suite import read_suite
from sculpt.fusion.errors import DataError, ModelError, first_line
from sculpt.live.model import load_model

from .conftest import save

TEXTS = ["The cat sat on the mat.", "Short.", "A longer sentence than those.", "!!", "~"]


def classes(model: Any, tokenizer: Any) -> list[int]:
    with torch.no_grad():
        return [int(model(torch.tensor([tokenizer(text)["input_ids"]])).logits.argmax()) for text in TEXTS]


def score(folder: Path, tmp_path: Path, rows: list[dict[str, Any]], task: str) -> float:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "suite.yaml").write_text(f"target: {{c: {{{task}}}}}")
    return score_suite(load_model(folder, device="cpu"), read_suite(tmp_path / "suite.yaml")).tasks[0].score


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_a_classifier_that_names_no_padding_is_scored_in_batches_as_each_row_alone(kind: str, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    sizes = {
        "Llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    }[kind]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), **sizes, num_labels=5, initializer_range=0.5, pad_token_id=None
    )
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    folder = save(model, tmp_path / "m")
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, classes(model, tokenizer), strict=True)]
    assert len({row["label"] for row in rows}) > 1
    assert score(folder, tmp_path, rows, "scorer: classification, file: rows.jsonl") == 100


def test_texts_longer_than_the_positions_are_cut(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    tokenizer = byte_tokenizer()
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=20, pad_token_id=1,
    )  # fmt: skip
    folder = save(RobertaForSequenceClassification(config).eval(), tmp_path / "m")
    rows = [{"text": "a" * 99, "label": 0}, {"text": "b", "label": 1}]
    assert 0 <= score(folder, tmp_path, rows, "scorer: classification, file: rows.jsonl") <= 100


@pytest.mark.filterwarnings("default")  # the library's own are not ours to mend
def test_a_task_of_the_harness_that_is_not_at_hand_is_named(pair: Any, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "task.yaml").write_text(
        "task: far\ndataset_path: nobody/nothing\ntest_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: a\ndoc_to_choice: [a]\ndoc_to_target: 0\nmetric_list: [{metric: acc}]\n"
    )
    with pytest.raises(DataError, match="lm-evaluation-harness fails on `far`"):
        score(pair.base, tmp_path, [], "scorer: lm-eval, task: far, include: .")


def test_a_library_that_cannot_import_another_is_told_by_what_that_one_says() -> None:
    inner = RuntimeError("operator torchvision::nms does not exist\nand a page more")
    outer = ImportError("Could not import module 'LlamaConfig'")
    outer.__cause__ = inner
    assert first_line(outer) == "operator torchvision::nms does not exist"


def test_a_class_that_cannot_be_imported_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where torchvision does not fit torch: every class that may see images then fails to import."""
    from sculpt.fusion.checkpoint.loading_rules import named_class

    class Broken(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise ModuleNotFoundError(f"Could not import module '{name}'") from RuntimeError("torchvision::nms")

    monkeypatch.setitem(__import__("sys").modules, "transformers", Broken("transformers"))
    with pytest.raises(ModelError, match="cannot import `LlavaForConditionalGeneration`: torchvision::nms") as caught:
        named_class({"architectures": ["LlavaForConditionalGeneration"]})
    assert "does not fit torch" in (caught.value.hint or "")
