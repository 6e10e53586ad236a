"""A protected fuse, where two calibrations and the fuse run in step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sculpt
import torch
import transformers
from safetensors.numpy import save_file
from sculpt.cli.app import app_of
from sculpt.cli.console import print_error
from sculpt.cli.fuse_view import show_grown
from sculpt.fusion.errors import CurvatureError, MethodError, SculptError
from sculpt.fusion.run.calibration import Calibration
from typer.testing import CliRunner

from . import zoo

Read = Callable[[Path], dict[str, np.ndarray]]


UNCHECKED = "--no-protect-check"  # how far a model moved is measured elsewhere, and takes a while


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """Return a maker of a base, a fine-tune of it, and data for both sides, once an animal."""
    made: dict[str, dict[str, Path]] = {}

    def make(name: str) -> dict[str, Path]:
        if name in made:
            return made[name]
        folder = tmp_path_factory.mktemp(name)
        animal = zoo.ALL[name]
        base, target = zoo.settle(animal, folder)
        generator = torch.Generator().manual_seed(9)
        general = folder / "general.jsonl"
        general.write_text("\n".join(json.dumps(animal.rows(row, generator)) for row in range(8)))
        model = getattr(transformers, animal.model).from_pretrained(base)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder / "sft")
        made[name] = {"base": base, "tuned": folder / "sft", "target": target, "general": general}
        return made[name]

    return make


def command(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command within this process; return its exit code, stdout and stderr."""
    done = CliRunner().invoke(app_of(), [str(argument) for argument in arguments])
    told = StringIO()
    if isinstance(done.exception, SculptError):
        with redirect_stderr(told):
            print_error(done.exception)
    elif done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr + told.getvalue()


def weights(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.glob("*.safetensors")))


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "mixtral", "qwen3-moe", "t5", "clip", "whisper", "llava"])
def test_measured_in_step_or_before_gives_the_same_bytes(
    name: str, models: Callable[[str], dict[str, Path]], tmp_path: Path, tensors_of: Read
) -> None:
    found = models(name)
    pair = found["base"], found["tuned"]
    within = sculpt.fuse(*pair, data=found["target"], protect=found["general"], output=tmp_path / "within")
    files = {}
    for side, data in (("tuned", "target"), ("base", "general")):
        files[side] = tmp_path / f"{side}.safetensors"
        sculpt.calibrate(found[side], data=found[data], output=files[side], full=["*"])
    before = sculpt.fuse(*pair, hessian=files["tuned"], protect=files["base"], output=tmp_path / "before")
    assert weights(tmp_path / "within") == weights(tmp_path / "before")
    assert within.curvature is not None
    assert before.curvature is not None
    assert within.curvature["general"]["num_samples"] == 8
    assert within.curvature["target"]["num_samples"] == before.curvature["target"]["num_samples"] == 6
    forms = [record.protected for record in within.fused]
    assert forms.count("full") > 3
    assert "diagonal" in forms
    for tensor, array in tensors_of(tmp_path / "within").items():
        assert np.isfinite(array.astype(np.float32)).all(), tensor
    getattr(transformers, zoo.ALL[name].model).from_pretrained(tmp_path / "within")


@pytest.mark.parametrize("form", ["full", "block:8", "diagonal"])
def test_weight_moves_from_the_fine_tune_to_the_base(
    form: str, models: Callable[[str], dict[str, Path]], tmp_path: Path, tensors_of: Read
) -> None:
    found, distances = models("llama-tied"), []
    base, tuned = tensors_of(found["base"]), tensors_of(found["tuned"])
    for weight in (0.0, 0.1, 1.0, 10.0, 1e9):
        out = tmp_path / f"{weight}"
        sculpt.fuse(
            found["base"],
            found["tuned"],
            output=out,
            method=sculpt.AdaDare(sparsity=0, gamma=1),
            protect=found["general"],
            protection=sculpt.Protection(weight=weight, curvature=form),
            data=found["target"],
        )
        fused = tensors_of(out)
        distances.append(sum(float(np.square(fused[name] - base[name]).sum()) for name in base))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-6 * distances[0]
    first = tensors_of(tmp_path / "0.0")
    assert all(np.array_equal(first[name], tuned[name]) for name in tuned)


def test_protected_outputs_of_layers_are_nearer_to_the_base_on_general_data_than_an_interpolation(
    models: Callable[[str], dict[str, Path]], tmp_path: Path, tensors_of: Read
) -> None:
    """The one layer that the theorem is about: the first, whose inputs no other layer moves."""
    found = models("llama")
    name = "model.layers.0.self_attn.q_proj.weight"
    grams = {
        side: sculpt.calibrate(found[side], data=found[data], full=[name])[name].gram
        for side, data in (("tuned", "target"), ("base", "general"))
    }
    only = sculpt.Settings(selection=sculpt.Selection(include=(name,), rest="tuned"))
    sculpt.fuse(
        found["base"], found["tuned"], output=tmp_path / "out", settings=only, data=found["target"],
        method=sculpt.AdaDare(sparsity=0, gamma=1), protect=found["general"],
        protection=sculpt.Protection(ridge=1e-6),
    )  # fmt: skip
    base, tuned, fused = (tensors_of(folder)[name].astype(np.float64) for folder in (
        found["base"], found["tuned"], tmp_path / "out"
    ))  # fmt: skip

    def error(moved: np.ndarray, gram: np.ndarray | None) -> float:
        assert gram is not None
        return float(np.einsum("ij,jk,ik->", moved, gram / np.trace(gram), moved))

    half = (base + tuned) / 2
    for kept in (fused, half):
        assert error(kept - base, grams["base"]) > 0
    ours, plain = (error(kept - tuned, grams["tuned"]) + error(kept - base, grams["base"]) for kept in (fused, half))
    assert ours < plain


def test_statistics_of_another_model_or_without_matrices_are_refused(
    models: Callable[[str], dict[str, Path]], tmp_path: Path
) -> None:
    found = models("llama-tied")
    pair = found["base"], found["tuned"]
    of_tuned = tmp_path / "tuned.safetensors"
    sculpt.calibrate(found["tuned"], data=found["target"], output=of_tuned)
    with pytest.raises(CurvatureError, match="not on the base"):
        sculpt.fuse(*pair, data=found["target"], protect=of_tuned, output=tmp_path / "out")
    with pytest.raises(CurvatureError, match="full Hessians, and the statistics of the tuned model hold"):
        sculpt.fuse(*pair, hessian=of_tuned, protect=found["general"], output=tmp_path / "out")
    diagonal = sculpt.Protection(curvature="diagonal")
    sculpt.fuse(*pair, hessian=of_tuned, protect=found["general"], protection=diagonal, output=tmp_path / "diagonal")
    assert not (tmp_path / "out").exists()


def test_tensors_that_fine_tuning_left_alone_are_neither_measured_nor_moved(
    models: Callable[[str], dict[str, Path]], tmp_path: Path, tensors_of: Read
) -> None:
    found = models("llama")
    base, tuned = tensors_of(found["base"]), tensors_of(found["tuned"])
    changed = [name for name in base if ".layers.0." in name]
    shutil.copytree(found["base"], tmp_path / "partly")
    partly = {name: tuned[name] if name in changed else base[name] for name in base}
    save_file(partly, tmp_path / "partly" / "model.safetensors", metadata={"format": "pt"})
    manifest = sculpt.fuse(
        found["base"], tmp_path / "partly", data=found["target"], protect=found["general"], output=tmp_path / "out"
    )
    forms = {record.name: record.protected for record in manifest.fused}
    assert {name for name, form in forms.items() if form in ("full", "diagonal")} == set(changed)
    for name, array in tensors_of(tmp_path / "out").items():
        assert np.array_equal(array, base[name]) == (name not in changed), name


@pytest.mark.parametrize("scope", ["block", "model"])
def test_a_wider_scope_wants_files(scope: str, models: Callable[[str], dict[str, Path]], tmp_path: Path) -> None:
    found = models("llama-tied")
    method = sculpt.AdaDare(scope=scope)  # pyright: ignore[reportArgumentType]
    with pytest.raises(MethodError, match="held in memory"):
        sculpt.fuse(
            found["base"], found["tuned"], data=found["target"], protect=found["general"], method=method,
            output=tmp_path / "out",
        )  # fmt: skip


def test_missing_general_data_leave_no_output(models: Callable[[str], dict[str, Path]], tmp_path: Path) -> None:
    found = models("llama-tied")
    with pytest.raises(SculptError, match=r"nothing\.jsonl"):
        sculpt.fuse(
            found["base"], found["tuned"], data=found["target"], protect=tmp_path / "nothing.jsonl",
            output=tmp_path / "out",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_is_protected_as_its_merged_model_is(
    models: Callable[[str], dict[str, Path]], tmp_path: Path, tensors_of: Read
) -> None:
    import peft

    found = models("llama")
    model = transformers.LlamaForCausalLM.from_pretrained(found["base"])
    torch.manual_seed(0)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    tuned.save_pretrained(tmp_path / "adapter")
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    calibration = Calibration(data=found["target"], protect=found["general"])
    settings = sculpt.Settings(protection=sculpt.Protection(), config_from="base")
    outputs = []
    for kind in ("adapter", "merged"):
        manifest = sculpt.fuse(
            found["base"], tmp_path / kind, output=tmp_path / f"{kind}-fused", calibration=calibration,
            settings=settings, method=sculpt.AdaDare(sparsity=0, gamma=1),
        )  # fmt: skip
        outputs.append(tensors_of(tmp_path / f"{kind}-fused"))
        forms = {record.name: record.protected for record in manifest.tensors}
        assert forms["model.layers.0.self_attn.q_proj.weight"] == "full"
    for name, array in outputs[0].items():
        np.testing.assert_allclose(array, outputs[1][name], atol=2e-6)


def test_the_command_protects_and_says_so(
    models: Callable[[str], dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = models("llama-tied")

    def run(*options: str | Path) -> dict[str, Any]:
        manifest, said = run_fuse(found["base"], found["tuned"], "--data", found["target"], *options)
        assert f"protecting the base on {found['general']}" in said
        return manifest

    monkeypatch.chdir(tmp_path)
    general = ("--protect", found["general"])
    first = run(*general, "--curvature", "block:8", "--protect-weight", "3", "-o", "first")
    assert {"weight": 3.0, "curvature": "block:8"}.items() <= first["settings"]["protection"].items()
    assert (first["method"], first["options"]) == ("two-sided", {})
    fine_tuned = sum(record["own_delta_l1"] for record in first["tensors"])
    assert fine_tuned > sum(record["delta_l1"] for record in first["tensors"])
    assert "protection: weight | 3.0" in (tmp_path / "first/README.md").read_text()
    second = run("--config", "two-sided", *general, "--protect-weight", "3", "-o", "second")
    assert {"weight": 3.0, "curvature": "full"}.items() <= second["settings"]["protection"].items()
    third = run(*general, "--sparsity", "0.5", "--protect-weight", "3", "--protect-scores", "both", "-o", "third")
    assert {"gamma": 1.0, "sparsity": 0.5}.items() <= third["options"].items()
    assert third["realised_sparsity"] > 0.4
    tensors = {record["name"]: record["protected"] for record in second["tensors"]}
    assert tensors["model.layers.1.mlp.down_proj.weight"] == "full"


@pytest.mark.parametrize("curvature", ["full", "diagonal"])
def test_what_general_text_does_not_reach_keeps_its_delta_and_that_is_said(
    curvature: str, models: Callable[[str], dict[str, Path]], tmp_path: Path, tensors_of: Read
) -> None:
    found = models("llava")
    rows = [json.loads(line) for line in found["general"].read_text().splitlines()]
    config = json.loads((found["base"] / "config.json").read_text())
    picture = config.get("image_token_id", config.get("image_token_index"))
    text = [{"input_ids": [token for token in row["input_ids"] if token != picture]} for row in rows]
    assert all(len(row["input_ids"]) < len(old["input_ids"]) for row, old in zip(text, rows, strict=True))
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps(row) for row in text))
    sides = ["--data", found["target"], "--protect", tmp_path / "text.jsonl", "--curvature", curvature]
    manifest, said = run_fuse(found["base"], found["tuned"], *sides, "-o", tmp_path / "out")
    forms = {record["name"]: record["protected"] for record in manifest["tensors"]}
    alone = {name for name, form in forms.items() if form == "target alone"}
    assert any("multi_modal_projector" in name for name in alone)
    assert not any("language_model" in name and name.endswith("proj.weight") for name in alone)
    assert "no general sample reached `" in said
    fused, tuned = tensors_of(tmp_path / "out"), tensors_of(found["tuned"])
    for name in alone:
        np.testing.assert_array_equal(fused[name], tuned[name])


def run_fuse(*arguments: str | Path) -> tuple[dict[str, Any], str]:
    code, printed, said = command("fuse", *arguments, UNCHECKED, "--json")
    assert code == 0, said
    return json.loads(printed), said


def test_two_folders_are_enough(
    models: Callable[[str], dict[str, Path]],
    tmp_path: Path,
    tensors_of: Read,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = models("llama-tied")
    options = [found["base"], found["tuned"], "--protect", found["general"]]
    manifest, said = run_fuse(*options, "-o", tmp_path / "out")
    assert "the fine-tuning deltas stand in for them" in said
    forms = [record["protected"] for record in manifest["tensors"] if record["protected"]]
    assert forms.count("delta") > 3
    assert "full" not in forms
    assert manifest["curvature"]["target"] == {"data": "delta"}
    assert manifest["curvature"]["general"]["num_samples"] == 8
    assert (manifest["method"], manifest["options"]) == ("two-sided", {})
    assert "times as large as the fine-tune's" not in said
    written = sculpt.Manifest.read(tmp_path / "out")
    grown = tuple(replace(record, delta_l1=2 * (record.fine_tuned_l1 or 0)) for record in written.tensors)
    show_grown(replace(written, tensors=grown))
    assert "the deltas after the protection are 2.0 times" in capsys.readouterr().err.replace("\n", " ")
    # The same by name, from Python, and with statistics of the base from before.
    run_fuse(*options, "--target-curvature", "delta", "-o", tmp_path / "named")
    sculpt.fuse(found["base"], found["tuned"], protect=found["general"], output=tmp_path / "python")
    sculpt.calibrate(found["base"], data=found["general"], output=tmp_path / "g.safetensors", full=["*"])
    run_fuse(found["base"], found["tuned"], "--protect", tmp_path / "g.safetensors", "-o", tmp_path / "before")
    assert weights(tmp_path / "out") == weights(tmp_path / "named")
    for name in ("python", "before"):  # of a process with another number of threads
        for key, array in tensors_of(tmp_path / name).items():
            np.testing.assert_allclose(array, tensors_of(tmp_path / "out")[key], atol=1e-6)
    base, tuned, fused = (tensors_of(folder) for folder in (found["base"], found["tuned"], tmp_path / "out"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert 0 < np.abs(fused[name] - base[name]).sum() < np.abs(tuned[name] - base[name]).sum()
    assert np.abs(fused[name] - tuned[name]).max() > 1e-4


def test_several_fine_tunes_are_put_together_with_samples_or_without(
    models: Callable[[str], dict[str, Path]], tmp_path: Path, tensors_of: Read
) -> None:
    found = models("llama")
    shutil.copytree(found["tuned"], tmp_path / "other")
    other = {name: array + np.float32(0.01) for name, array in tensors_of(found["tuned"]).items()}
    save_file(other, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    options = [found["base"], found["tuned"], tmp_path / "other", "--protect", found["general"]]
    mixed, _ = run_fuse(
        *options, "--data", found["target"], "--data", "delta", "--protect-shares", "1,2", "-o", tmp_path / "mixed"
    )
    forms = {record["protected"] for record in mixed["tensors"]}
    assert "full, delta" in forms
    assert [side.get("num_samples") for side in mixed["curvature"]["target"]] == [6, None]
    plain, _ = run_fuse(*options, "-o", tmp_path / "plain")
    assert "delta" in {record["protected"] for record in plain["tensors"]}
    sparse, _ = run_fuse(*options, "--sparsity", "0.5", "--allocation", "exact", "-o", tmp_path / "sparse")
    assert 0.4 < sparse["realised_sparsity"] < 0.6
    assert weights(tmp_path / "mixed") != weights(tmp_path / "plain")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"method: adadare\noptions: {{gamma: 1.0, sparsity: 0.0}}\nbase: {found['base']}\n"
        f"models: [{found['tuned']}, {tmp_path / 'other'}]\ncalibration: {{protect: {found['general']}}}\n"
    )
    code, _, said = command("merge", recipe, UNCHECKED, "-o", tmp_path / "merged")
    assert code == 0, said
    assert weights(tmp_path / "merged") == weights(tmp_path / "plain")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--data", "{target}", "--target-curvature", "delta", "--curvature", "diagonal"],
            "without matrices the delta says nothing",
        ),
        (["--curvature", "diagonal"], "a protection needs matrices"),
        (["--target-curvature", "data"], "there are none hint: `--data` names samples"),
        (["--protect-shares", "1,2"], "put together before a method for one model, and there is one"),
        (["--protect-shares", "2"], "put together before a method for one model, and there is one"),
    ],
)
def test_what_a_missing_target_cannot_give_is_refused(
    options: list[str], said: str, models: Callable[[str], dict[str, Path]], tmp_path: Path
) -> None:
    found = models("llama-tied")
    given = [option.format(target=found["target"]) for option in options]
    pair = (found["base"], found["tuned"], "--protect", found["general"])
    code, _, told = command("fuse", *pair, *given, "-o", tmp_path / "out")
    assert code == 1
    assert said in " ".join(told.split()), told
    assert not (tmp_path / "out").exists()


def test_several_models_without_protection_and_idle_stand_ins_are_refused(
    models: Callable[[str], dict[str, Path]], tmp_path: Path
) -> None:
    found = models("llama-tied")
    with pytest.raises(MethodError, match="takes 1 tuned model, got 2"):
        sculpt.fuse(found["base"], [found["tuned"]] * 2, output=tmp_path / "out")
    with pytest.raises(MethodError, match="only if the base is protected"):
        sculpt.fuse(found["base"], found["tuned"], data="delta", output=tmp_path / "out")
    with pytest.raises(MethodError, match="needs samples of the target task"):
        sculpt.fuse(
            found["base"], found["tuned"], method=sculpt.Tailor(), protect=found["general"], output=tmp_path / "out"
        )
    pair, sides = (found["base"], [found["tuned"]] * 2), {"protect": found["general"], "output": tmp_path / "out"}
    how = sculpt.Protection(target="identity")
    with pytest.raises(MethodError, match="no effect where `target` is identity"):
        sculpt.fuse(*pair, method="two-sided", data=[found["target"], "delta"], protection=how, **sides)
    with pytest.raises(MethodError, match="TIES merges them itself"):
        sculpt.fuse(*pair, method="ties", protection=sculpt.Protection(shares=2.0), **sides)


def test_statistics_of_none_of_a_models_tensors_are_refused(
    models: Callable[[str], dict[str, Path]], tmp_path: Path
) -> None:
    found, other = models("llama-tied"), models("gpt2")
    file = tmp_path / "gpt2.safetensors"
    sculpt.calibrate(other["base"], data=other["general"], output=file, full=["*"])
    pair = (found["base"], found["tuned"], "--protect", file, "--hessian-of-other-model")
    code, _, told = command("fuse", *pair, "-o", tmp_path / "out")
    assert code == 1
    assert "none of their tensors is one of the base" in " ".join(told.split())


def test_a_patch_over_its_base_is_protected_as_the_model_that_it_makes(
    models: Callable[[str], dict[str, Path]], tmp_path: Path
) -> None:
    found = models("gpt2")
    patch, base, general = tmp_path / "tuned.safetensors", found["base"], found["general"]
    sculpt.pack(base, found["tuned"], output=patch)
    patched = f"{base}+{patch}"
    both = {}
    for name, pair in {
        "whole": (base, found["tuned"]),
        "patched": (base, patched),
        "back": (found["tuned"], base),
        "from a patch": (patched, base),
    }.items():
        made = sculpt.fuse(*pair, method="two-sided", protect=general, output=tmp_path / name)
        both[name] = weights(tmp_path / name), {record.protected for record in made.fused}
    assert both["patched"] == both["whole"]
    assert "delta" in both["whole"][1]
    assert both["from a patch"] == both["back"]
