"""`lora-merge` and `lora-extract` as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from sculpt.fusion.checkpoint import Checkpoint, open_checkpoint
from sculpt.fusion.errors import SculptError

from ..commands import invoke

Pair = Callable[..., tuple[Path, Path]]


def write_adapter(folder: Path, seed: int, modules: dict[str, tuple[int, int]], rank: int = 3) -> Path:
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, (rows, columns) in modules.items():
        a, b = rng.standard_normal((rank, columns)) * 0.1, rng.standard_normal((rows, rank)) * 0.1
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.astype(np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": sorted(modules)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"


@pytest.fixture
def inputs(make_pair: Pair, tmp_path: Path) -> tuple[Path, Path, Path]:
    base, _ = make_pair()
    one = write_adapter(tmp_path / "one", 1, {Q: (32, 32), UP: (72, 32)})
    return base, one, write_adapter(tmp_path / "two", 2, {Q: (32, 32)})


def delta(base: Path, tuned: Path, name: str) -> np.ndarray:
    before = Checkpoint(base)
    return open_checkpoint(tuned, before).read(name) - before.read(name).astype(np.float32)


@pytest.mark.parametrize("method", ["task-arithmetic", "linear"])
def test_adapters_merge_into_the_base(method, inputs, tmp_path):
    base, one, two = inputs
    result = invoke(
        "lora-merge", base, one, two, "--method", method, "--weights", "0.5,2", "--dtype", "float32",
        "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["method"] == "task-arithmetic"
    assert printed["options"]["weights"] == [0.5, 2.0]
    for module in (Q, UP):
        name = f"{module}.weight"
        expected = 0.5 * delta(base, one, name) + 2 * delta(base, two, name)
        np.testing.assert_allclose(delta(base, tmp_path / "out", name), expected, atol=1e-6)


@pytest.mark.parametrize("method", ["dare-linear", "dare-ties"])
def test_density_is_what_is_kept(method, inputs, tmp_path):
    base, one, two = inputs
    result = invoke(
        "lora-merge", base, one, two, "--method", method, "--density", "0.3", "--json", "-o", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["options"]["sparsity"] == pytest.approx(0.7)


def test_as_adapter_is_the_exact_sum_or_the_best_of_a_rank(inputs, tmp_path):
    base, one, two = inputs
    done = invoke("lora-merge", base, one, two, "--as-adapter", "--method", "cat", "-o", tmp_path / "cat", "--json")
    assert json.loads(done.stdout)["error"] == 0
    assert {layer["rank"] for layer in json.loads(done.stdout)["layers"]} == {6, 3}
    name = f"{Q}.weight"
    expected = delta(base, one, name) + delta(base, two, name)
    np.testing.assert_allclose(delta(base, tmp_path / "cat", name), expected, atol=1e-6)
    shown = invoke(
        "lora-merge", base, one, two, "--as-adapter", "--method", "svd", "--rank", "2", "-o", tmp_path / "svd"
    )
    assert shown.exit_code == 0
    assert "2 layers, relative error" in " ".join(shown.stderr.split())
    config = json.loads((tmp_path / "svd/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 2)


REFUSALS = {
    "svd into the base": (["--method", "svd"], "makes an adapter"),
    "rank into the base": (["--rank", "4"], "makes an adapter"),
    "svd without a rank": (["--method", "svd", "--as-adapter"], "needs `--rank` or `--energy`"),
    "ties as adapter": (["--method", "ties", "--as-adapter"], "full rank"),
    "weights": (["--weights", "1,2,3"], "`weights` has 3 values for 2 models"),
    "weights as adapter": (["--weights", "1,2,3", "--as-adapter"], "`weights` has 3 values for 2 models"),
    "density of a sum": (["--density", "0.5"], "has no effect"),
    "election of a sum": (["--election", "unweighted"], "does not elect signs"),
    "normalised adapter": (["--as-adapter", "--normalize"], "merging into the base"),
    "dry run of an adapter": (["--as-adapter", "--dry-run"], "merging into the base"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_sentence_and_write_nothing(case, inputs, tmp_path):
    base, one, two = inputs
    options, words = REFUSALS[case]
    before = sorted(tmp_path.iterdir())
    result = invoke("lora-merge", base, one, two, *options)
    assert isinstance(result.exception, SculptError)
    assert words in result.exception.message
    assert sorted(tmp_path.iterdir()) == before


def test_extract_writes_an_adapter_of_the_fine_tune(make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    options = ["--exclude", "*embed_tokens*", "--others", "drop"]
    done = invoke("lora-extract", base, tuned, "--rank", "4", *options, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["output"] == str(tuned.resolve()) + "-adapter"
    for layer in report["layers"]:
        name = f"{layer['name']}.weight"
        wanted = delta(base, tuned, name)
        missed = np.linalg.norm(wanted - delta(base, Path(report["output"]), name)) / np.linalg.norm(wanted)
        assert missed == pytest.approx(layer["error"], abs=1e-5)
    energy = invoke("lora-extract", base, tuned, "--energy", "0.5", *options, "--json", "-o", tmp_path / "energy")
    assert all(layer["error"] ** 2 <= 0.5 for layer in json.loads(energy.stdout)["layers"])


def test_a_base_that_no_adapter_could_name_is_refused(make_pair: Pair, tmp_path: Path) -> None:
    """PEFT loads the base by the name that the adapter has of it, and `base+patch` is no folder."""
    base, tuned = make_pair()
    assert invoke("pack", base, tuned, "-o", tmp_path / "p.safetensors").exit_code == 0
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    patched = f"{base}+{tmp_path / 'p.safetensors'}"
    for command in (["lora-extract", patched, tuned], ["lora-train", patched, "--data", tmp_path / "d.jsonl"]):
        refused = invoke(*command, "-o", tmp_path / "out")
        assert isinstance(refused.exception, SculptError)
        told = f"`{patched}` is a patch over its base, and an adapter names one folder as its base"
        assert (refused.exception.message, "`sculpt apply`" in (refused.exception.hint or "")) == (told, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "d.jsonl", "p.safetensors", "sft"]


def test_extract_says_what_an_adapter_cannot_hold(make_pair: Pair) -> None:
    base, tuned = make_pair()
    result = invoke("lora-extract", base, tuned)
    assert isinstance(result.exception, SculptError)
    assert "ties to its output" in result.exception.message


@pytest.fixture
def buffer(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = [
        {"input_ids": [int(i) for i in rng.integers(1, 97, 8)], "domain": domain}
        for domain in ("code", "math")
        for _ in range(2)
    ]
    file = tmp_path / "buffer.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def runnable(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A model that transformers can run, with two adapters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=72,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=97,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    one = write_adapter(tmp_path / "one", 1, {Q: (32, 32), UP: (72, 32)})
    return tmp_path / "base", one, write_adapter(tmp_path / "two", 2, {Q: (32, 32)})


@pytest.mark.parametrize("method", ["task-arithmetic", "ties", "dare-ties"])
def test_adaptive_weights_are_those_of_the_output(method, runnable, buffer, tmp_path):
    base, one, two = runnable
    options = ["--weights", "adaptive", "--buffer", buffer, "--steps", "3", "--b-max", "3", "--method", method]
    result = invoke(
        "lora-merge", base, one, two, *options, "--learned", tmp_path / "learned.json", "-o", tmp_path / "out",
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    learned = json.loads((tmp_path / "learned.json").read_text())
    alpha = learned["coefficients"]["alpha"]
    assert len(learned["losses"]) == 3
    printed = json.loads(result.stdout)
    assert printed["options"]["weights"] == alpha
    from sculpt.cli.lora import MergeOptions, linear_merge_of
    from sculpt.learn.parts import parts_of

    merge = linear_merge_of(MergeOptions(method=method), 0)
    before = Checkpoint(base)
    adapters = [open_checkpoint(adapter, before) for adapter in (one, two)]
    for name in (f"{Q}.weight", f"{UP}.weight"):  # of the model that was scored
        parts = parts_of(name, before, adapters, merge).arrays
        expected = sum(weight * part for weight, part in zip(alpha, parts, strict=True))
        np.testing.assert_allclose(delta(base, tmp_path / "out", name).reshape(expected.shape), expected, atol=1e-6)
    typed = ",".join(map(repr, alpha))
    assert f"--weights {typed}" in result.stderr.replace("\n", "")
    again = invoke("lora-merge", base, one, two, "--method", method, "--weights", typed, "-o", tmp_path / "again")
    assert again.exit_code == 0, again.output
    before, learned = Checkpoint(tmp_path / "out"), Checkpoint(tmp_path / "again")
    assert all(np.array_equal(before.read(name), learned.read(name)) for name in before.tensors)


@pytest.mark.parametrize("method", ["ties", "dare-ties"])
def test_a_fixed_weight_is_the_strength_and_the_election_may_be_weighted(method, inputs, tmp_path):
    base, one, two = inputs

    def merged(*options: str) -> np.ndarray:
        out = tmp_path / "-".join(options)
        result = invoke("lora-merge", base, one, two, "--method", method, "--dtype", "float32", *options, "-o", out)
        assert result.exit_code == 0, result.output
        return delta(base, out, f"{Q}.weight")

    first = merged("--weights", "1")
    assert np.any(first)
    for weight in (3, 5):
        np.testing.assert_allclose(merged("--weights", str(weight)), weight * first, atol=1e-6)
    np.testing.assert_allclose(merged("--weights", "3", "--election", "weighted"), first, atol=1e-6)
    summed = merged("--weights", "1", "--no-normalize")
    assert np.abs(summed).sum() > 1.01 * np.abs(first).sum()
    command = invoke(
        method, base, one, two, "--election", "unweighted", "--weights", "3", "--dtype", "float32", "-o", tmp_path / "c"
    )
    assert command.exit_code == 0, command.output
    assert np.array_equal(
        delta(base, tmp_path / "c", f"{Q}.weight"), merged("--election", "unweighted", "--weights", "3")
    )


def test_a_classifier_of_images_learns_domain_by_domain_over_seeds(tmp_path):
    """The source's protocol: a ViT, an adapter a style, an image of each class in the buffer, all styles scored."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        num_labels=3, id2label={0: "cat", 1: "dog", 2: "cow"}, label2id={"cat": 0, "dog": 1, "cow": 2},
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    rng = np.random.default_rng(0)
    rows = []
    for style in ("photo", "cartoon"):
        for k in range(9):
            file = tmp_path / f"{style}{k}.png"
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
            rows.append({"image": file.name, "label": ("cat", "dog", "cow")[k % 3], "domain": style})
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    query = "vit.layers.0.attention.q_proj"
    if f"{query}.weight" not in Checkpoint(tmp_path / "vit").tensors:
        query = next(n for n in Checkpoint(tmp_path / "vit").tensors if "quer" in n or "q_proj" in n)
        query = query.removesuffix(".weight").removesuffix(".bias")
    one, two = (write_adapter(tmp_path / f"lora{k}", k, {query: (16, 16)}) for k in (1, 2))
    result = invoke(
        "lora-merge", tmp_path / "vit", one, two, "--method", "ties", "--weights", "adaptive", "--buffer-from", data,
        "--per-class", "1", "--seeds", "2", "--steps", "2", "--continual", "--test", data,
        "--learned", tmp_path / "l.json", "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    learned = json.loads((tmp_path / "l.json").read_text())
    assert [run["seed"] for run in learned["seeds"]] == [0, 1]
    assert learned["seeds"][0]["coefficients"] != learned["seeds"][1]["coefficients"]
    assert learned["seeds"][0]["coefficients"] == learned["coefficients"]
    assert [set(found["scores"]) for found in learned["experiences"]] == [{"photo"}, {"photo", "cartoon"}]
    assert "±" in result.stderr
    assert (tmp_path / "out/model.safetensors").exists()


def test_continual_scores_every_domain_so_far(runnable, buffer, tmp_path):
    base, one, two = runnable
    options = ["--weights", "adaptive", "--buffer", buffer, "--steps", "2", "--continual", "--as-adapter"]
    result = invoke("lora-merge", base, one, two, *options, "--learned", tmp_path / "l.json", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    experiences = json.loads((tmp_path / "l.json").read_text())["experiences"]
    assert [list(found["scores"]) for found in experiences] == [["code"], ["code", "math"]]
    assert "after each experience" in result.stderr
    assert (tmp_path / "out/adapter_config.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weights", "adaptive"], "needs `--buffer`"),
        (["--weights", "adaptive", "--buffer", "b", "--buffer-from", "d"], "or `buffer_from`"),
        (["--weights", "adaptive", "--buffer", "b", "--per-class", "2"], "`per_class` has no effect"),
        (["--steps", "5"], "are for `--weights adaptive`"),
        (["--weights", "adaptive", "--buffer", "b", "--scale", "2"], "`--scale` has no effect"),
        (["--weights", "adaptive", "--method", "ties", "--election", "weighted"], "not linear in its weights"),
        (["--weights", "adaptive", "--method", "ties", "--as-adapter"], "full rank"),
    ],
)
def test_learning_options_that_make_no_sense_are_refused(options, words, runnable):
    base, one, two = runnable
    result = invoke("lora-merge", base, one, two, *options)
    assert isinstance(result.exception, SculptError)
    assert words in result.exception.message


@pytest.mark.parametrize("option", [["--dtype", "float16"], ["--memory", "1GB"], ["--density", "0.5"], ["--dry-run"]])
def test_options_that_an_adapter_has_no_use_for_are_refused(option, inputs, tmp_path):
    base, one, two = inputs
    result = invoke("lora-merge", base, one, two, "--as-adapter", "-o", tmp_path / "out", *option)
    assert isinstance(result.exception, SculptError)
    assert result.exception.message == f"`{option[0]}` is for merging into the base, not into an adapter"
    assert not (tmp_path / "out").exists()


def test_a_density_out_of_range_has_its_own_name(inputs, tmp_path):
    base, one, _ = inputs
    result = invoke("lora-merge", base, one, "--method", "dare-ties", "--density", "2", "-o", tmp_path / "out")
    assert "`density` must lie between 0 and 1, got 2" in str(result.exception)
