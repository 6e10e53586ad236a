"""Coefficients are learned by the true gradient, and what is learned is what is merged."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sculpt.data.encoding import Encoder
from sculpt.data.example import IGNORED, Example
from sculpt.fusion.checkpoint import Checkpoint, open_checkpoint
from sculpt.fusion.errors import DataError, MethodError, ModelError, SculptError
from sculpt.fusion.methods import Dare, DareTies, TaskArithmetic, Ties
from sculpt.learn.buffer import BufferSample, batches, draw_buffer, read_buffer
from sculpt.learn.coefficients import Learnable
from sculpt.learn.continual import learn_continually
from sculpt.learn.merged_model import MergedModel
from sculpt.learn.parts import LinearMerge, parts_of
from sculpt.learn.training import Learning, learn, predictions, score

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
METHODS = ["task-arithmetic", "ties", "dare-ties", "dare-linear"]


def merge_of(method: str, density: float = 0.4, seed: int = 0) -> LinearMerge:
    made = {
        "task-arithmetic": lambda: TaskArithmetic(),
        "ties": lambda: Ties(density=density, election="unweighted"),
        "dare-ties": lambda: DareTies(sparsity=1 - density, election="unweighted"),
        "dare-linear": lambda: Dare(sparsity=1 - density),
    }
    return LinearMerge(method=made[method](), seed=seed)


def build(kind: str) -> Any:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 29,
    }
    if kind == "classifier":
        config = transformers.LlamaConfig(**sizes, num_labels=3, pad_token_id=0)
        return transformers.LlamaForSequenceClassification(config)
    if kind == "mixtral":
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, num_local_experts=3))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=True))


def make_adapter(kind: str, folder: Path, seed: int, **options: Any) -> Path:
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(build(kind), LoraConfig(**{"r": 3, "target_modules": ["q_proj", "up_proj"], **options}))
        torch.manual_seed(seed)
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn_like(parameter) * 0.3
        tuned.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("learn")
    found = {}
    for kind in ("llama", "classifier", "mixtral"):
        build(kind).save_pretrained(root / kind)
        options: dict[str, Any] = {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]}
        options = options if kind == "mixtral" else {}
        adapters = [make_adapter(kind, root / f"{kind}-{seed}", seed, **options) for seed in (1, 2, 3)]
        base = Checkpoint(root / kind)
        found[kind] = base, [open_checkpoint(adapter, base) for adapter in adapters]
    return found


def samples(count: int = 5, *, domain: str | None = None, seed: int = 0, classes: bool = False) -> list[BufferSample]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        ids = rng.integers(1, 29, rng.integers(4, 9)).tolist()
        label = int(rng.integers(3)) if classes else None
        example = Example.of_tokens(ids, [IGNORED, IGNORED, *[0] * (len(ids) - 2)])
        found.append(BufferSample(example=example, label=label, domain=domain))
    return found


def loss_of(merged: MergedModel, group: list[BufferSample]) -> torch.Tensor:
    ((batch, classes),) = batches(group, len(group))
    logits, labels, _ = predictions(merged.model, batch, classes)
    return torch.nn.functional.cross_entropy(logits, labels)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *(("llama", method) for method in METHODS),
        ("classifier", "dare-linear"),
        ("mixtral", "ties"),
        ("mixtral", "task-arithmetic"),
    ],
)
def test_the_gradient_of_alpha_is_the_slope_of_the_loss(kind, method, made):
    base, adapters = made[kind]
    merged = MergedModel(base, merge_of(method))
    merged.use(adapters)
    group = samples(classes=kind == "classifier")
    alpha = [0.5, 1.2, 0.8]
    merged.set(alpha)
    merged.start_gradient()
    loss_of(merged, group).backward()
    assert all(parameter.grad is None for parameter in merged.model.parameters())
    for k in (0, 2):
        losses = []
        for step in (-1e-2, 1e-2):
            merged.set([a + step * (i == k) for i, a in enumerate(alpha)])
            losses.append(float(loss_of(merged, group).detach().double()))
        slope = (losses[1] - losses[0]) / 2e-2
        assert float(merged.gradient[k]) == pytest.approx(slope, rel=5e-2, abs=2e-4)


def test_coefficients_stay_within_their_bounds():
    for b_max in (1.0, 3.0, 5.0):
        learnable = Learnable(2, b_max)
        assert learnable.value().b == pytest.approx((1 + b_max) / 2)
        assert list(learnable.value().alpha) == pytest.approx([(1 + b_max) / 4] * 2)
        with torch.no_grad():
            learnable.c += torch.tensor([50.0, -50.0])
            learnable.b_raw += 50
        assert list(learnable.value().alpha) == pytest.approx([b_max, 0], abs=1e-12)
    with pytest.raises(MethodError, match="`b_max` must be at least 1"):
        Learnable(2, 0.5)


def test_learning_does_at_least_as_well_as_what_made_the_labels(made):
    base, adapters = made["llama"]
    merged = MergedModel(base, merge_of("task-arithmetic"))
    merged.use(adapters)
    merged.set([0, 1, 0])
    group = samples(12)
    ((batch, _),) = batches(group, 12)
    with torch.no_grad():
        best = merged.model(**batch.inputs).logits.argmax(-1)
    labelled = []
    for row, sample in zip(best, group, strict=True):
        tokens = sample.example.tokens.clone()
        tokens[0, 1:] = row[: tokens.shape[1] - 1]
        answers = torch.zeros_like(tokens)
        labelled.append(BufferSample(example=dataclasses.replace(sample.example, tokens=tokens, answers=answers)))
    learned = learn(merged, adapters, labelled, Learning(b_max=3.0, steps=40, learning_rate=0.2))
    found = score(merged, labelled)
    merged.set([0, 1, 0])
    assert score(merged, labelled).accuracy == 1
    assert found.loss < score(merged, labelled).loss < learned.losses[0]
    merged.close()
    for name, parameter in merged.model.named_parameters():
        expected = base.read(name).reshape(parameter.shape)
        assert np.array_equal(parameter.detach().numpy(), expected)


def test_only_the_coefficients_train_and_equal_runs_agree(made):
    base, adapters = made["llama"]
    runs = []
    for _ in range(2):
        merged = MergedModel(base, merge_of("dare-ties", 0.5, seed=3))
        runs.append(learn(merged, adapters, samples(), Learning(steps=4)).coefficients)
    assert runs[0] == runs[1]


def test_coefficients_are_learned_anew_at_each_experience(made):
    base, adapters = made["llama"]
    buffer = [s for k in range(3) for s in samples(2, domain=f"d{k}", seed=k)]
    merged = MergedModel(base, merge_of("ties", 0.5))
    known = learn_continually(merged, adapters, buffer, Learning(steps=3))
    assert [len(found.coefficients.alpha) for found in known] == [1, 2, 3]
    assert [list(found.scores) for found in known] == [["d0"], ["d0", "d1"], ["d0", "d1", "d2"]]
    alone = learn(merged, adapters[:1], buffer[:2], Learning(steps=3))
    assert alone.coefficients == known[0].coefficients
    with pytest.raises(DataError, match="3 domains"):
        learn_continually(merged, adapters[:2], buffer, Learning(steps=1))
    with pytest.raises(DataError, match="needs a `domain`"):
        learn_continually(merged, adapters, samples(), Learning(steps=1))


def test_parts_add_up_to_the_merge_of_peft(made):
    """`ties` and `dare_ties` of peft.utils.merge_utils 0.21, on the deltas; DARE's draws are ours."""
    from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge, magnitude_based_pruning

    base, adapters = made["llama"]
    name = "model.layers.1.mlp.up_proj.weight"
    before = base.read(name)
    deltas = [torch.from_numpy(a.read(name) - before).reshape(48, 32) for a in adapters]
    alpha = torch.tensor([0.5, 2.0, 1.5])
    pruned = torch.stack([magnitude_based_pruning(delta, density=0.25) for delta in deltas])
    expected = disjoint_merge(pruned * alpha[:, None, None], calculate_majority_sign_mask(pruned))
    parts = parts_of(name, base, adapters, merge_of("ties", 0.25)).arrays
    found = sum(float(a) * part for a, part in zip(alpha, parts, strict=True))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    dropped = parts_of(name, base, adapters, merge_of("dare-linear", 0.25)).arrays
    thinned = torch.stack([torch.from_numpy(part) for part in dropped])
    assert 0.2 < float((thinned != 0).float().mean()) < 0.3
    expected = disjoint_merge(thinned * alpha[:, None, None], calculate_majority_sign_mask(thinned))
    parts = parts_of(name, base, adapters, merge_of("dare-ties", 0.25)).arrays
    found = sum(float(a) * part for a, part in zip(alpha, parts, strict=True))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_rows_become_samples(made, tmp_path):
    base, _ = made["llama"]
    encoder = Encoder(base.folder, build("llama"), max_length=3, for_scores=True)
    (found,) = read_buffer(
        write_rows(tmp_path / "a.jsonl", [{"input_ids": [1, 2, 3], "domain": "x"}]), encoder, classifies=False
    )
    assert found.example.tokens.tolist() == [[1, 2, 3]]
    assert (found.example.num_predicted, found.label, found.domain) == (2, None, "x")
    for label, number in ((1, 1), ("LABEL_1", 1)):
        file = write_rows(tmp_path / "b.jsonl", [{"input_ids": [1, 2], "label": label}])
        (found,) = read_buffer(file, encoder, classifies=True)
        assert found.label == number
    refused = [
        ({"input_ids": [1]}, False, "nothing to predict"),
        ({"other": 1}, False, "holds `other`, which nothing reads"),
        ({"input_ids": [1, 2]}, True, "`label` of row 1 .* is `None`, which is not one of the model's 2 classes"),
        ({"text": "a b"}, False, "tokenizer"),
    ]
    for row, classifies, words in refused:
        with pytest.raises(SculptError, match=words):
            read_buffer(write_rows(tmp_path / "c.jsonl", [row]), encoder, classifies=classifies)


def test_a_buffer_holds_as_many_of_each_class_of_each_domain_as_asked_for(tmp_path):
    rows = [{"image": f"{k}.png", "label": k % 3, "domain": f"d{k // 12}"} for k in range(24)]
    rows += [{"prompt": "a", "completion": "yes", "domain": "d2"}] * 4
    file = write_rows(tmp_path / "d.jsonl", rows)
    for per_class in (1, 2):
        drawn = draw_buffer(file, per_class, seed=0)
        assert drawn == sorted(set(drawn))
        kinds = [(rows[number]["domain"], rows[number].get("label", "yes")) for number in drawn]
        assert {kinds.count(kind) for kind in kinds} == {per_class}
        assert len(set(kinds)) == 7
    assert draw_buffer(file, 1, seed=0) != draw_buffer(file, 1, seed=1)
    assert set(draw_buffer(file, 1, seed=0)) < set(draw_buffer(file, 2, seed=0))
    with pytest.raises(DataError, match="to tell its class by"):
        draw_buffer(write_rows(tmp_path / "e.jsonl", [{"text": "a"}]), 1, seed=0)
    with pytest.raises(MethodError, match="`per_class` must be at least 1"):
        draw_buffer(file, 0, seed=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["llama", "mixtral", "classifier"])
def test_parts_in_a_running_model_are_those_of_the_merge(kind, method, made):
    base, adapters = made[kind]
    merge = merge_of(method)
    merged = MergedModel(base, merge)
    merged.use(adapters)
    alpha = [0.5, 1.2, -0.8]
    merged.set(alpha)
    for name in merged.names:
        parts = parts_of(name, base, adapters, merge).arrays
        wanted = base.read(name).reshape(parts[0].shape) + sum(a * p for a, p in zip(alpha, parts, strict=True))
        np.testing.assert_allclose(merged._view(name).numpy().reshape(wanted.shape), wanted, atol=2e-6)
    assert {type(parts).__name__ for parts in merged._parts.values()} & {"SummedProducts", "CodedProducts"}


def test_a_narrow_model_learns_in_its_own_dtype(made):
    base, adapters = made["llama"]
    merged = MergedModel(base, merge_of("ties"), dtype=torch.bfloat16)
    learned = learn(merged, adapters, samples(), Learning(steps=4))
    wide = learn(MergedModel(base, merge_of("ties")), adapters, samples(), Learning(steps=4))
    assert merged.model.dtype == torch.bfloat16
    assert learned.coefficients.alpha == pytest.approx(wide.coefficients.alpha, rel=0.02)


def test_a_model_that_cannot_be_run_is_refused(made, tmp_path):
    base, _ = made["llama"]
    alone = Path(shutil.copy(base.files[0], tmp_path))  # without its configuration
    with pytest.raises(ModelError, match=r"config\.json"):
        MergedModel(Checkpoint(alone), merge_of("task-arithmetic"))


def test_what_is_not_linear_in_its_weights_is_not_learned():
    for method in (Ties(), DareTies(), Dare(normalize=True), TaskArithmetic(normalize=True), Ties(scope="model")):
        with pytest.raises(MethodError, match="not linear in its weights"):
            LinearMerge(method=method)
    with pytest.raises(MethodError, match="no weights to learn"):
        merge_of("ties", density=0)
