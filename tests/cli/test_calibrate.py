"""`sculpt calibrate` and `sculpt hessian` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import typer
from safetensors.numpy import load_file
from sculpt.cli import calibrate, fuse, merge
from sculpt.fusion.errors import CurvatureError, DataError, MethodError, OutputError, SculptError
from sculpt.hessian import DiagonalHessian
from typer.testing import CliRunner, Result


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    calibrate.register(app)
    fuse.register(app)
    merge.register(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=50,
        max_position_embeddings=32,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "sft")
    for name in ("one", "two", "general"):
        rows = [{"input_ids": torch.randint(50, (5,)).tolist()} for _ in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "sft"


def test_the_owners_command_writes_a_file_here(model: Path, tmp_path: Path) -> None:
    done = run("calibrate", "sft/", "--data", "one.jsonl")
    assert done.exit_code == 0, done.exception
    assert done.stdout == ""
    assert (
        "sft-hessian.safetensors: 12 tensors of sft (LlamaForCausalLM), 3 samples and 15 tokens of one.jsonl"
        in done.stderr
    )
    assert len(DiagonalHessian.load(tmp_path / "sft-hessian.safetensors")) == 12


def test_json_holds_what_was_done(model: Path) -> None:
    done = run("calibrate", "sft", "--data", "one.jsonl", "-o", "h", "--json", "--report", "--samples", "2")
    content = json.loads(done.stdout)
    assert content["provenance"]["num_samples"] == 2
    assert content["num_tensors"] == 12
    assert {entry["name"] for entry in content["tensors"]} >= {"model.layers.0.mlp.up_proj.weight"}


def test_an_existing_file_stays_unless_told(model: Path, tmp_path: Path) -> None:
    run("calibrate", "sft", "--data", "one.jsonl", "-o", "h")
    before = (tmp_path / "h").read_bytes()
    assert isinstance(run("calibrate", "sft", "--data", "two.jsonl", "-o", "h").exception, OutputError)
    assert (tmp_path / "h").read_bytes() == before
    assert run("calibrate", "sft", "--data", "two.jsonl", "-o", "h", "--overwrite").exit_code == 0
    assert (tmp_path / "h").read_bytes() != before


def test_merging_files_is_calibrating_on_both(model: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run("calibrate", "sft", "--data", f"{name}.jsonl", "-o", name)
    done = run("hessian", "merge", "one", "two", "-o", "both")
    assert done.exit_code == 0, done.exception
    (tmp_path / "all.jsonl").write_text(f"{Path('one.jsonl').read_text()}\n{Path('two.jsonl').read_text()}")
    run("calibrate", "sft", "--data", "all.jsonl", "-o", "all")
    both, whole = DiagonalHessian.load("both"), DiagonalHessian.load("all")
    assert set(both) == set(whole)
    for name in both:
        assert both[name].num_tokens == whole[name].num_tokens == 30
        assert both[name].terms[0] == pytest.approx(whole[name].terms[0], rel=1e-12)
    assert isinstance(run("hessian", "merge", "one", "two", "-o", "both").exception, OutputError)


def test_the_report_names_every_layer(model: Path) -> None:
    run("calibrate", "sft", "--data", "one.jsonl", "-o", "h")
    done = run("hessian", "report", "h")
    for part in ("model.layers.0.self_attn.q_proj.weight", "spread", "dead", "100.0%"):
        assert part in done.stdout
    assert isinstance(run("hessian", "report", "nowhere").exception, CurvatureError)


@pytest.fixture
def mixture(model: Path) -> Path:
    """A mixture of so many experts that narrow data leave some of them out, and a fine-tune of it."""
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        hidden_size=16,
        moe_intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_experts=32,
        num_experts_per_tok=2,
        vocab_size=50,
        head_dim=8,
    )
    made = transformers.Qwen3MoeForCausalLM(config)
    made.save_pretrained(model.with_name("moe"))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))
    made.save_pretrained(model.with_name("moe-sft"))
    return model.with_name("moe-sft")


def test_starved_experts_are_warned_of_unless_every_token_goes_to_all(mixture: Path) -> None:
    done = run("calibrate", mixture, "--data", "one.jsonl", "-o", "h")
    assert "experts saw less than a tenth of the tokens of an average one" in " ".join(done.stderr.split())
    assert "`model.layers.0.mlp.experts." in done.stderr
    assert "warning" in run("hessian", "report", "h").stderr
    starved = json.loads(run("hessian", "report", "h", "--json").stdout)["starved_experts"]
    assert starved[0]["num_tokens"] == 0
    assert "warning" not in run("calibrate", mixture, "--data", "one.jsonl", "-o", "all", "--all-experts").stderr


def test_experts_that_neither_side_reached_are_named(mixture: Path) -> None:
    pair = (mixture.with_name("moe"), mixture)
    done = run("fuse", *pair, "--data", "one.jsonl", "--protect", "general.jsonl", "-o", "fused")
    assert done.exit_code == 0, done.exception
    assert "no sample of either side reached `model.layers.0.mlp.experts." in " ".join(done.stderr.split())


@pytest.mark.parametrize("option", ["--samples", "--max-length", "--batch-size"])
def test_counts_below_one_are_refused(option: str, model: Path) -> None:
    refused = run("calibrate", "sft", "--data", "one.jsonl", option, "0")
    assert isinstance(refused.exception, DataError)
    assert "must be at least 1, got 0" in str(refused.exception)


def add_fine_tunes(model: Path, tmp_path: Path) -> None:
    """Write two fine-tunes of a model, `math` and `code`."""
    torch.manual_seed(1)
    loaded = transformers.LlamaForCausalLM.from_pretrained(model)
    for name in ("math", "code"):
        with torch.no_grad():
            for parameter in loaded.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        loaded.save_pretrained(tmp_path / name)


def test_any_method_takes_protected_deltas_of_several_models(model: Path, tmp_path: Path) -> None:
    add_fine_tunes(model, tmp_path)
    data = ["--data", "one.jsonl", "--data", "two.jsonl"]
    options = {
        "plain": ["--density", "0.5"],
        "free": ["--density", "0.5", *data, "--protect", "general.jsonl", "--protect-weight", "0"],
        "protected": ["--density", "0.5", *data, "--protect", "general.jsonl"],
    }
    (tmp_path / "recipe.yaml").write_text(
        "method: ties\nbase: sft\nmodels: [math, code]\noptions: {density: 0.5}\n"
        "calibration: {data: [one.jsonl, two.jsonl], protect: general.jsonl}\n"
    )
    found = {}
    for output, given in options.items():
        done = run("ties", "sft", "math", "code", *given, "-o", output)
        assert done.exit_code == 0, done.exception
        found[output] = load_file(tmp_path / output / "model.safetensors")
    assert run("merge", "recipe.yaml", "-o", "by-recipe").exit_code == 0
    found["by-recipe"] = load_file(tmp_path / "by-recipe" / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    assert all(found["free"][key].tobytes() == found["plain"][key].tobytes() for key in found["plain"])
    assert all(found["by-recipe"][key].tobytes() == found["protected"][key].tobytes() for key in found["plain"])
    assert found["protected"][name].tobytes() != found["plain"][name].tobytes()


def test_a_target_on_the_general_samples_is_refused(model: Path, tmp_path: Path) -> None:
    add_fine_tunes(model, tmp_path)
    refused = run("fuse", "sft", "math", "--data", "one.jsonl", "--protect", "one.jsonl", "-o", "out")
    assert isinstance(refused.exception, MethodError)
    assert "would both be measured on" in str(refused.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_several_models_each_have_statistics_of_their_own(method: str, model: Path, tmp_path: Path) -> None:
    add_fine_tunes(model, tmp_path)
    for name, data in (("math", "one"), ("code", "two")):
        assert run("calibrate", name, "--data", f"{data}.jsonl", "--full", "*", "-o", f"{name}.h").exit_code == 0
    options = {
        "file": ["--hessian", "math.h", "--hessian", "code.h"],
        "data": ["--data", "one.jsonl", "--data", "two.jsonl"],
        "same": ["--data", "one.jsonl"],  # for both
    }
    found = {}
    for output, given in options.items():
        done = run(method, "sft", "math", "code", *given, "-o", output)
        assert done.exit_code == 0, done.exception
        found[output] = load_file(tmp_path / output / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    assert all(found["file"][key].tobytes() == found["data"][key].tobytes() for key in found["file"])
    assert found["file"][name].tobytes() != found["same"][name].tobytes()
    if method == "fisher":
        math, code = (load_file(tmp_path / folder / "model.safetensors")[name] for folder in ("math", "code"))
        one, two = (DiagonalHessian.load(file)[name] for file in ("math.h", "code.h"))
        one, two = (np.asarray(seen.terms[0]) / seen.num_tokens for seen in (one, two))
        np.testing.assert_allclose(found["file"][name], (one * math + two * code) / (one + two), rtol=1e-4, atol=1e-6)
    refused = run(method, "sft", "math", "code", "--hessian", "code.h", "--hessian", "math.h", "-o", "swapped")
    assert isinstance(refused.exception, CurvatureError)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["calibrate", "sft", "--data", "one.jsonl", "--data", "two.jsonl"], "one data set, and there are 2"),
        (["calibrate", "sft", "--full", "*.nothing"], "`*.nothing` matches no tensor of `sft`"),
        (["fuse", "sft", "sft", "--data", "nowhere.jsonl", "--dry-run", "-o", "out"], "`nowhere.jsonl` does not exist"),
        (["fuse", "sft", "sft", "--hessian", "a", "--hessian", "b"], "`a` does not exist"),
    ],
)
def test_what_would_be_ignored_or_is_missing_is_refused(
    command: list[str], said: str, model: Path, tmp_path: Path
) -> None:
    done = run(*command)
    assert isinstance(done.exception, SculptError)
    assert said in str(done.exception)
