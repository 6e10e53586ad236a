"""The commands as they are typed: exit codes, one sentence, data on stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from sculpt.cli.app import FAMILIES
from sculpt.fusion.methods import METHODS

Pair = Callable[..., tuple[Path, Path]]
Sculpt = Callable[..., Any]


def test_the_owners_command_writes_beside_the_tuned_folder(sculpt: Sculpt, make_pair: Pair, tmp_path: Path) -> None:
    make_pair()
    done = sculpt("fuse", "base/", "sft/", "--gamma", "0.5", "--sparsity", "0.9", "--no-calibration", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sft-adadare/model.safetensors.index.json").exists()
    assert done.stdout == ""
    assert "what was done to each block" in done.stderr
    assert "AdaDARE-γ fused 10 tensors" in done.stderr.replace("\n", " ")
    manifest = json.loads((tmp_path / "sft-adadare/sculpt-manifest.json").read_text())
    assert manifest["command"] == "sculpt fuse base sft --gamma 0.5 --sparsity 0.9 --no-calibration"
    assert manifest["settings"]["seed"] == 0
    assert sculpt("verify", "sft-adadare", "--input", "base", "--input", "sft", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("command", [["dare", "--scale", "0.5"], ["task-arithmetic", "--scale", "0.5"]])
def test_json_is_the_manifest(sculpt: Sculpt, command: list[str], make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    done = sculpt(command[0], base, tuned, *command[1:], "-o", tmp_path / "out", "--json")
    printed = json.loads(done.stdout)
    written = json.loads((tmp_path / "out/sculpt-manifest.json").read_text())
    assert printed == {"output": str(tmp_path / "out"), **written}
    assert written["method"] == command[0]


def test_dry_run_reads_headers_alone_and_writes_nothing(sculpt: Sculpt, make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    command = ("fuse", base, tuned, "-o", tmp_path / "out", "--dry-run", "--no-load-check", "--no-calibration")
    done = sculpt(*command, "--exclude", "*norm*", "--json")
    plan = json.loads(done.stdout)
    assert {t["name"]: t["action"] for t in plan["tensors"]}["model.norm.weight"] == "copy"
    assert plan["needs"]["bytes_written"] > 0
    shown = sculpt(*command)
    for part in ("mlp.up_proj.weight", "peak memory about", "free there", "read", "write"):
        assert part in shown.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "sft"]


def test_dry_run_looks_at_samples_and_does_not_mind_an_output(sculpt: Sculpt, make_pair: Pair, tmp_path: Path) -> None:
    base, tuned = make_pair()
    (tmp_path / "train.jsonl").write_text('{"prompt": "one", "completion": " two"}\n' * 3)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "one"\n')
    assert sculpt("dare", base, tuned, "-o", tmp_path / "out").returncode == 0
    command = ("fuse", base, tuned, "-o", tmp_path / "out", "--dry-run", "--no-load-check", "--data")
    done = sculpt(*command, tmp_path / "train.jsonl")
    assert done.returncode == 0, done.stderr
    assert f"{tuned} is run on train.jsonl: 3 rows, about" in done.stdout
    assert "time about" in done.stdout
    assert "exists; `--overwrite` replaces it" in done.stderr
    refused = sculpt(*command, tmp_path / "bad.jsonl")
    assert (refused.returncode, "bad.jsonl" in refused.stderr) == (1, True)


REFUSALS = {
    "nothing there": (["fuse", "nowhere", "sft"], "error: `nowhere` does not exist\n"),
    "sparsity in percent": (
        ["fuse", "base", "sft", "--sparsity", "90"],
        "error: `--sparsity` must lie between 0 and 1, got 90\n\nhint: did you mean 0.9?\n",
    ),
    "what says what would be so anyway, and has no effect": (
        ["dare", "base", "sft", "--samples", "128"],
        "error: `--samples` has no effect on DARE without `--protect`\n",
    ),
    "inside an input": (
        ["dare", "base", "sft", "-o", "base/out"],
        "error: the output `base/out` lies inside the input `base`\n",
    ),
    "a bad dtype": (
        ["dare", "base", "sft", "--dtype", "int4"],
        "error: `--dtype` must be one of float64, float32, float16, bfloat16, got `int4`\n",
    ),
    "a bad size": (["dare", "base", "sft", "--max-shard-size", "big"], "error: `big` is not a size\n"),
    "nothing selected": (["dare", "base", "sft", "--include", "nothing"], "error: no tensor is selected for fusing\n"),
    "no such device": (
        ["dare", "base", "sft", "--device", "abacus"],
        "error: the device `abacus` cannot be used: ",
    ),
    "a device without values": (
        ["dare", "base", "sft", "--device", "meta"],
        "error: the device `meta` cannot be used: it holds shapes and no values\n",
    ),
    "two sources": (
        ["fuse", "base", "sft", "--data", "x", "--no-calibration"],
        "error: `--data` has no effect without calibration\n",
    ),
    "idle protection": (
        ["fuse", "base", "sft", "--protect-weight", "3"],
        "error: `--protect-weight` has no effect without `--protect`\n\nhint: ",
    ),
    "no threads": (["dare", "base", "sft", "--threads", "-3"], "error: `--threads` must be at least 1, got -3\n"),
    "statistics without a use": (
        ["dare", "base", "sft", "--data", "x"],
        "error: `--data` has no effect on DARE without `--protect`\n\nhint: ",
    ),
    "no such curvature": (
        ["fuse", "base", "sft", "--protect", "default", "--curvature", "half"],
        "error: `--curvature` must be full, diagonal or block:N such as block:512, got `half`\n",
    ),
    "protection without calibration": (
        ["fuse", "base", "sft", "--protect", "default", "--no-calibration"],
        "error: `--protect` has no effect without calibration\n",
    ),
    "no statistics": (["fuse", "base", "sft", "--hessian", "none.safetensors"], "error: "),
    "not a fused one": (["verify", "base"], "error: `base` holds no `sculpt-manifest.json`\n"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_one_sentence_and_exit_code_1(sculpt: Sculpt, case: str, make_pair: Pair, tmp_path: Path) -> None:
    make_pair()
    arguments, told = REFUSALS[case]
    done = sculpt(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(told), done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "sft"]


def test_an_option_of_a_recipe_is_named_as_there(sculpt: Sculpt, make_pair: Pair, tmp_path: Path) -> None:
    make_pair()
    (tmp_path / "bad.yaml").write_text("method: dare\nbase: base\nmodels: [sft]\noptions: {sparsity: 90}\n")
    done = sculpt("merge", "bad.yaml", "-o", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: `sparsity` must lie between 0 and 1, got 90\n"), done.stderr
    done = sculpt("lora-prune", "sft", "--density", "7", "-o", "out", cwd=tmp_path)
    assert done.stderr.startswith("error: `--density` must lie between 0 and 1, got 7\n"), done.stderr


@pytest.mark.parametrize("command", ["calibrate", "fuse", "lora-train", "gate", "hessian"])
def test_a_command_alone_says_what_to_type(sculpt: Sculpt, command: str) -> None:
    done = sculpt(command)
    assert done.returncode == 2
    assert f"sculpt {command} " in done.stdout
    assert "Missing" not in done.stderr


@pytest.mark.parametrize("arguments", [["fuse"], ["fuse", "a"], ["nonsense"], ["fuse", "a", "b", "--gamma", "much"]])
def test_wrong_usage_is_exit_code_2(sculpt: Sculpt, arguments: list[str]) -> None:
    assert sculpt(*arguments).returncode == 2


def test_inspect_and_diff_agree_with_the_tensors(
    sculpt: Sculpt, make_pair: Pair, tensors_of: Callable[..., dict]
) -> None:  # pyright: ignore[reportMissingTypeArgument]
    import numpy as np

    base, tuned = make_pair()
    a, b = tensors_of(base), tensors_of(tuned)
    found = json.loads(sculpt("inspect", base, "--json").stdout)
    assert found["num_parameters"] == sum(tensor.size for tensor in a.values())
    assert {t["name"]: tuple(t["shape"]) for t in found["tensors"]} == {n: t.shape for n, t in a.items()}
    for tensor in json.loads(sculpt("diff", base, tuned, "--json").stdout)["tensors"]:
        first, second = a[tensor["name"]].astype(float), b[tensor["name"]].astype(float)
        assert tensor["changed"] == pytest.approx((first != second).mean())
        assert tensor["relative_norm"] == pytest.approx(np.linalg.norm(second - first) / np.linalg.norm(first))
        assert tensor["largest"] == pytest.approx(np.abs(second - first).max())
    assert "10 tensors compared, 0 identical" in sculpt("diff", base, tuned).stdout
    assert "model.layers.1" in sculpt("inspect", base, "--tensors").stdout


def test_diff_names_what_is_not_finite(sculpt: Sculpt, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"a": np.ones(9, "f4"), "b": np.ones(9, "f4")}, tmp_path / "one.safetensors")
    save_file({"a": np.full(9, np.nan, "f4"), "b": np.full(9, 2, "f4")}, tmp_path / "other.safetensors")
    done = sculpt("diff", tmp_path / "one.safetensors", tmp_path / "other.safetensors")
    assert done.returncode == 0, done.stderr
    assert "not finite" in next(line for line in done.stdout.splitlines() if line.startswith("a "))


LIGHT = [
    ["--help"],
    ["inspect", "base"],
    ["dare", "base", "sft"],
    *([c, "--help"] for c in ("fuse", "eval", "gate", "sweep", "benchmark", "compare", "scores", "bound")),
]
EACH_APART = """
import json, os, sys
from sculpt.cli.app import main
for words in json.loads(sys.argv.pop()):
    child = os.fork()
    if not child:
        sys.argv = ["sculpt", *words]
        try: main()
        except SystemExit as left: code = left.code or 0
        heavy = {"torch", "transformers", "accelerate", "numba", "matplotlib", "jinja2"} & set(sys.modules)
        sys.stderr.write(f"{words}: {heavy}" if heavy else "")
        sys.stderr.flush()
        os._exit(code or bool(heavy))
    assert not os.waitpid(child, 0)[1], words
"""


def test_neither_torch_nor_transformers_is_imported(make_pair: Pair, tmp_path: Path) -> None:
    make_pair()
    command = [sys.executable, "-c", EACH_APART, json.dumps(LIGHT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_each_module_has_the_commands_that_it_is_asked_for() -> None:
    for modules in FAMILIES.values():
        for module, names in modules.items():
            offered = typer.Typer()
            import_module(f"sculpt.cli.{module}").register(offered)
            found = [one.name for one in (*offered.registered_commands, *offered.registered_groups)]
            others = [name for name in METHODS if name in found] if module == "fuse" else []
            assert sorted(filter(None, found)) == sorted([*names, *others]), module


def test_only_what_is_asked_for_is_loaded() -> None:
    script = "import sys; from sculpt.cli.app import app_of; app_of(sys.argv[1]); print(*sys.modules)"
    for word, own in (("--version", set()), ("status", {"status"}), ("ties", {"fuse"}), ("hessian", {"calibrate"})):
        done = subprocess.run([sys.executable, "-c", script, word], capture_output=True, text=True, check=True)
        loaded = {name.removeprefix("sculpt.cli.") for name in done.stdout.split() if name.startswith("sculpt.cli.")}
        others = {"status", "fuse", "sweep", "inspect", "untie"} - own
        assert own <= loaded, word
        assert not others & loaded, word


def test_every_command_has_help_with_an_example(sculpt: Sculpt) -> None:
    listed = sculpt("--help").stdout
    for command in ("fuse", "dare", "task-arithmetic", "inspect", "diff", "verify", "calibrate", "demo"):
        assert command in listed
        text = sculpt(command, "--help").stdout
        assert f"sculpt {command}" in text.split("Options")[0], command


def test_an_unknown_command_is_refused_with_the_nearest_of_all_commands(sculpt: Sculpt) -> None:
    for typed, meant in (("fuze", "fuse"), ("lora-merg", "lora-merge"), ("hesian", "hessian")):
        done = sculpt(typed)
        assert done.returncode == 2
        assert f"'{meant}'" in done.stderr
    assert "merge" in sculpt("hessian", "--help").stdout
