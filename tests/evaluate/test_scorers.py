"""Each scorer against a slow oracle: one row at a time, no padding, the whole of the logits."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sculpt.data.example import IGNORED, Example
from sculpt.demo.tiny import byte_tokenizer
from sculpt.evaluate.evaluate import evaluate, score_suite
from sculpt.evaluate.suite import read_suite
from sculpt.fusion.errors import DataError, ModelError
from sculpt.live.model import LiveModel, load_model
from sculpt.predict.generation import cut_at, generate
from sculpt.predict.likelihood import likelihoods

from .conftest import Pair, save

TEXTS = ["The cat sat on the mat.", "Short.", "A longer sentence, so that the rows differ in length by a lot of bytes."]
QUESTIONS = [
    {"prompt": "Sky is", "choices": [" blue", " green and loud"], "answer": 0},
    {"prompt": "Two and two make", "choices": [" five", " four", " fish"], "answer": " four"},
    {"prompt": "Grass:", "choices": [" no", " green"], "answer": 1},
]


@pytest.fixture(scope="module")
def model(pair: Pair) -> LiveModel:
    return load_model(pair.base, device="cpu")


@torch.no_grad()
def log_probabilities(model: LiveModel, prompt: str, completion: str) -> torch.Tensor:
    tokenizer = byte_tokenizer()
    before, after = tokenizer(prompt)["input_ids"], tokenizer(completion)["input_ids"]
    logits = model.model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    return torch.stack([logits[len(before) + k - 1, token] for k, token in enumerate(after)])


def one_task(model: LiveModel, suite: Path) -> Any:
    return score_suite(model, read_suite(suite)).tasks[0]


def test_perplexity_of_text_is_that_of_each_token_after_the_first(model, rows_file, suite_file) -> None:
    rows_file("rows.jsonl", *({"text": text} for text in TEXTS))
    found = one_task(model, suite_file("target: {prose: {scorer: perplexity, file: rows.jsonl}}"))
    expected = torch.cat([log_probabilities(model, text[0], text[1:]) for text in TEXTS])
    assert found.figures["num_tokens"] == len(expected)
    assert found.figures["loss"] == pytest.approx(-float(expected.mean()), rel=1e-5)
    assert found.figures["perplexity"] == pytest.approx(math.exp(-float(expected.mean())), rel=1e-5)
    assert found.score == found.figures["accuracy"]
    assert found.num_rows == 3


def test_perplexity_of_a_completion_leaves_the_prompt_out(model, rows_file, suite_file) -> None:
    rows_file("rows.jsonl", *({"prompt": text[:4], "completion": text[4:]} for text in TEXTS))
    suite = "target: {prose: {scorer: perplexity, file: rows.jsonl, score: probability}}"
    found = one_task(model, suite_file(suite))
    # The space that the first prompt ends in is foretold, as lm-evaluation-harness has it.
    ends = [len(text[:4].rstrip()) for text in TEXTS]
    expected = torch.cat([log_probabilities(model, t[:end], t[end:]) for t, end in zip(TEXTS, ends, strict=True)])
    assert found.figures["num_tokens"] == len(expected)
    assert found.score == pytest.approx(100 * math.exp(float(expected.mean())), rel=1e-5)


def test_a_relative_score_of_the_reference_itself_is_100(model, rows_file, suite_file) -> None:
    rows_file("rows.jsonl", {"text": TEXTS[0]})
    task = "scorer: perplexity, file: rows.jsonl"
    plain = one_task(model, suite_file(f"target: {{prose: {{{task}}}}}"))
    reference = plain.figures["perplexity"]
    found = one_task(model, suite_file(f"target: {{prose: {{{task}, score: relative, reference: {reference}}}}}"))
    assert found.score == pytest.approx(100)


def test_long_text_is_scored_in_windows_and_none_of_it_is_left_out(model, rows_file, suite_file) -> None:
    text = "abcdefghij" * 5
    rows_file("rows.jsonl", {"text": text})
    found = one_task(model, suite_file("max_length: 16\ntarget: {prose: {scorer: perplexity, file: rows.jsonl}}"))
    windows = [text[start : start + 16] for start in range(0, 50, 16)]
    expected = torch.cat([log_probabilities(model, window[0], window[1:]) for window in windows])
    assert found.figures["loss"] == pytest.approx(-float(expected.mean()), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_batch_changes_no_likelihood(model: LiveModel, batch_size: int) -> None:
    ids = [byte_tokenizer()(text)["input_ids"] for text in TEXTS]
    examples = [Example.of_tokens(row, [IGNORED, IGNORED, *[0] * (len(row) - 2)]) for row in ids]
    found = likelihoods(model.model, examples, device=model.device, batch_size=batch_size)
    for text, likelihood in zip(TEXTS, found, strict=True):
        expected = log_probabilities(model, text[:2], text[2:])
        assert likelihood.log_probability == pytest.approx(float(expected.sum()), rel=1e-5)
        assert likelihood.num_tokens == len(expected)


@pytest.mark.parametrize("normalize", ["none", "tokens", "characters"])
def test_the_likeliest_choice_is_taken(normalize: str, model, rows_file, suite_file) -> None:
    rows_file("rows.jsonl", *QUESTIONS)
    text = f"target: {{quiz: {{scorer: multiple-choice, file: rows.jsonl, normalize: {normalize}}}}}"
    right = 0
    for question, answer in zip(QUESTIONS, (0, 1, 1), strict=True):
        scores = [
            float(log_probabilities(model, str(question["prompt"]), choice).sum())
            / (1 if normalize == "none" else len(choice))
            for choice in question["choices"]  # one byte is one token here
        ]
        right += scores.index(max(scores)) == answer
    found = one_task(model, suite_file(text))
    assert found.score == pytest.approx(100 * right / 3)
    assert found.figures["chance"] == pytest.approx(100 * (1 / 2 + 1 / 3 + 1 / 2) / 3)


def greedy(model: LiveModel, prompt: str, count: int) -> str:
    tokenizer = byte_tokenizer()
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        for _ in range(count):
            ids = [*ids, int(model.model(torch.tensor([ids])).logits[0, -1].argmax())]
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_exact_match_compares_what_greedy_decoding_writes(model, rows_file, suite_file) -> None:
    prompts = ["The cat", "A much longer prompt than that", "x"]
    written = [greedy(model, prompt, 6) for prompt in prompts]
    rows_file(
        "rows.jsonl",
        {"question": prompts[0], "answer": ["something else", written[0]]},
        {"question": prompts[1], "answer": written[1]},
        {"question": prompts[2], "answer": written[2] + "!"},
    )
    text = "scorer: exact-match, file: rows.jsonl, max_new_tokens: 6, stop: [], fields: {prompt: question}"
    found = one_task(model, suite_file(f"target: {{qa: {{{text}}}}}"))
    assert found.score == pytest.approx(200 / 3)
    forgiving = one_task(model, suite_file(f"target: {{qa: {{{text}, ignore_punctuation: true}}}}"))
    assert forgiving.score == pytest.approx(100)


def test_an_answer_ends_where_a_stop_begins() -> None:
    assert cut_at("\n yes\nno", ["\n"]) == "yes"
    assert cut_at("yes. no; maybe", [";", "."]) == "yes"
    assert cut_at("yes", []) == "yes"


def test_answers_stop_where_the_tokens_are_whole_words(pair: Pair, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "words"
    shutil.copytree(pair.base, folder, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    with load_model(pair.base) as loaded:
        size = loaded.model.config.vocab_size
    words = Tokenizer(WordLevel({"[UNK]": 0, **{f"w{k}": k for k in range(1, size)}}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]").save_pretrained(folder)
    prompts = [Example.of_tokens([3, 4, 5], [IGNORED] * 3), Example.of_tokens([9, 8, 7, 6, 5], [IGNORED] * 5)]
    with load_model(folder, device="cpu", dtype="float32") as model:

        def write(stop: list[str]) -> list[str]:
            return generate(model, prompts, max_new_tokens=8, stop=stop, batch_size=2)

        whole = write([])
        end = whole[0].split()[2]
        assert write([end]) == [text.split(end)[0] for text in whole]
        assert write(["\n"]) == whole


def test_what_a_model_raises_is_one_sentence(pair: Pair) -> None:
    with load_model(pair.base, device="cpu", dtype="float32") as model:
        too_large = [Example.of_tokens([model.model.config.vocab_size + 5], [IGNORED])]
        with pytest.raises(ModelError, match="`LlamaForCausalLM` fails on a prompt: index out of range in self"):
            generate(model, too_large, max_new_tokens=2, stop=["\n"], batch_size=1)


def test_a_chat_goes_through_the_template(pair: Pair, tmp_path: Path, rows_file, suite_file) -> None:
    from transformers import AutoTokenizer

    folder = shutil.copytree(pair.base, tmp_path / "chatty")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '>' + m.content if m.role == 'assistant' else '[' + m.content + ']' }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    rows_file("rows.jsonl", {"prompt": [{"role": "user", "content": "hi"}], "completion": "yo"})
    model = load_model(folder, device="cpu")
    found = one_task(model, suite_file("target: {chat: {scorer: perplexity, file: rows.jsonl}}"))
    expected = log_probabilities(model, "[hi]>", "yo")
    assert found.figures["loss"] == pytest.approx(-float(expected.mean()), rel=1e-5)


def test_an_encoder_decoder_reads_the_prompt_in_its_encoder(tmp_path: Path, rows_file, suite_file) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=0,
    )  # fmt: skip
    folder = save(T5ForConditionalGeneration(config).eval(), tmp_path / "t5")
    rows_file("rows.jsonl", *({"prompt": text[:5], "completion": text[5:]} for text in TEXTS if len(text) > 6))
    model = load_model(folder, device="cpu")
    found = one_task(model, suite_file("target: {t: {scorer: perplexity, file: rows.jsonl}}"))
    losses = []
    for text in TEXTS:
        if len(text) > 6:
            inputs, labels = (torch.tensor([tokenizer(part)["input_ids"]]) for part in (text[:5], text[5:]))
            with torch.no_grad():
                losses += [float(model.model(input_ids=inputs, labels=labels).loss)] * labels.shape[1]
    assert found.figures["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_classification_head_is_scored_by_its_first_class(tmp_path: Path, rows_file, suite_file) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(3)
    tokenizer = byte_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        id2label={0: "bad", 1: "good", 2: "odd"}, initializer_range=0.5, pad_token_id=0,
    )  # fmt: skip
    folder = save(BertForSequenceClassification(config).eval(), tmp_path / "bert")
    model = load_model(folder, device="cpu")
    with torch.no_grad():
        classes = [int(model.model(torch.tensor([tokenizer(t)["input_ids"]])).logits.argmax()) for t in TEXTS]
    names = ["bad", "good", "odd"]
    rows_file(
        "rows.jsonl",
        {"text": TEXTS[0], "label": names[classes[0]]},
        {"text": TEXTS[1], "label": classes[1]},
        {"text": TEXTS[2], "label": (classes[2] + 1) % 3},
    )
    found = one_task(model, suite_file("target: {c: {scorer: classification, file: rows.jsonl}}"))
    assert found.score == pytest.approx(200 / 3)


def test_pairs_of_texts_are_classified_in_a_batch_as_each_alone(tmp_path: Path, rows_file, suite_file) -> None:
    """A Llama's head finds the last token by what pads: here 1, the byte `!`."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_labels=5, initializer_range=0.5, pad_token_id=1,
    )  # fmt: skip
    folder = save(LlamaForSequenceClassification(config).eval(), tmp_path / "llama")
    model = load_model(folder, device="cpu")
    pairs = [(text, other) for text in TEXTS for other in ("Yes.", "No, never.")]
    with torch.no_grad():
        classes = [int(model.model(torch.tensor([tokenizer(a + b)["input_ids"]])).logits.argmax()) for a, b in pairs]
    assert len(set(classes)) > 1
    rows = [{"text": a, "text_pair": b, "label": label} for (a, b), label in zip(pairs, classes, strict=True)]
    rows_file("rows.jsonl", *rows)
    assert one_task(model, suite_file("target: {c: {scorer: classification, file: rows.jsonl}}")).score == 100


def test_a_model_that_does_not_fit_is_streamed_and_scores_the_same(pair: Pair, rows_file, suite_file) -> None:
    rows_file("rows.jsonl", *({"text": text} for text in TEXTS))
    suite = suite_file("target: {prose: {scorer: perplexity, file: rows.jsonl}}")
    with load_model(pair.base, device="cpu", memory_bytes=60_000) as streamed:
        assert streamed.streamed
        assert "disk" in streamed.model.hf_device_map.values()
        assert score_suite(streamed, read_suite(suite)) == evaluate(pair.base, suite, device="cpu")


REFUSALS = {
    "no such choice": (
        "multiple-choice",
        {"prompt": "a", "choices": ["b", "c"], "answer": 2},
        DataError,
        "`answer` of row 1 of `rows.jsonl` is `2`, which is not one of its 2 choices",
    ),
    "a field that is missing": ("exact-match", {"prompt": "a"}, DataError, "row 1 of `rows.jsonl` has no `answer`"),
    "nothing to complete": (
        "perplexity",
        {"prompt": "a", "completion": ""},
        DataError,
        "a completion of row 1 of `rows.jsonl` is empty",
    ),
    "no head": (
        "classification",
        {"text": "a", "label": 0},
        ModelError,
        "`LlamaForCausalLM` has no classification head",
    ),
    "no template": (
        "perplexity",
        {"prompt": [{"role": "user", "content": "x"}], "completion": "a"},
        DataError,
        "has no chat template",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_is_refused_by_row(case: str, model, rows_file, suite_file) -> None:
    scorer, row, error, message = REFUSALS[case]
    rows_file("rows.jsonl", row)
    with pytest.raises(error) as caught:
        one_task(model, suite_file(f"target: {{t: {{scorer: {scorer}, file: rows.jsonl}}}}"))
    assert message in str(caught.value)


@pytest.mark.parametrize(("scorer", "package"), [("caption", "pycocoevalcap"), ("lm-eval", "lm_eval")])
def test_a_missing_library_is_named_with_what_installs_it(
    scorer: str, package: str, model, rows_file, suite_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    rows_file("rows.jsonl", {"prompt": "a", "references": ["b"]})
    task = "scorer: lm-eval, task: hellaswag" if scorer == "lm-eval" else "scorer: caption, file: rows.jsonl"
    with pytest.raises(ModelError) as caught:
        one_task(model, suite_file(f"target: {{t: {{{task}}}}}"))
    assert caught.value.hint is not None
    assert "pip install 'checkpoint-sculpt[" in caught.value.hint


@pytest.mark.filterwarnings("default")  # the library's own are not ours to mend
def test_captions_are_scored_by_cocos_cider(model, rows_file, suite_file) -> None:
    pytest.importorskip("pycocoevalcap")
    prompts = ["The cat", "A longer prompt", "x"]
    written = [greedy(model, prompt, 8) for prompt in prompts]
    right = [["some other caption here", text + "."] for text in written]
    for name, references in (("right", right), ("wrong", [["nothing of the kind", "at all"]] * 3)):
        rows_file(f"{name}.jsonl", *({"prompt": p, "references": r} for p, r in zip(prompts, references, strict=True)))
    task = "scorer: caption, max_new_tokens: 8, stop: []"
    good, bad = (one_task(model, suite_file(f"target: {{c: {{{task}, file: {n}.jsonl}}}}")) for n in ("right", "wrong"))
    assert good.score > bad.score == 0


@pytest.mark.filterwarnings("default")  # the library's own are not ours to mend
def test_a_task_of_the_harness_agrees_with_our_own_scorer(model, tmp_path: Path, rows_file, suite_file) -> None:
    pytest.importorskip("lm_eval")
    rows = [{"prompt": f"Q{k} is", "choices": [" a", " bb", "  c"], "answer": k % 3} for k in range(6)]
    file = rows_file("rows.jsonl", *rows)
    (tmp_path / "quiz.yaml").write_text(f"""
task: tiny_quiz
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""")
    suite = suite_file("""
pretrained: {harness: {scorer: lm-eval, task: tiny_quiz, include: .}}
target: {own: {scorer: multiple-choice, file: rows.jsonl}}
""")
    theirs, ours = score_suite(model, read_suite(suite)).tasks
    assert theirs.score == pytest.approx(ours.score)
    assert theirs.num_rows == ours.num_rows == 6


def test_outputs_that_are_not_finite_are_refused(pair: Pair) -> None:
    broken = load_model(pair.base, device="cpu")
    with torch.no_grad():
        broken.model.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        likelihoods(broken.model, [Example.of_tokens([1, 2, 3], [0, 0, 0])], device=broken.device, batch_size=1)
