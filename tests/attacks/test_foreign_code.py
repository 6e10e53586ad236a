"""No code that lies in a model's folder runs, whoever says "y"; no config makes transformers fetch anything."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sculpt.fusion.checkpoint import Checkpoint
from sculpt.fusion.checkpoint.adapter.module_names import ModelNames
from sculpt.fusion.errors import ModelError
from sculpt.live.model import load_model

from ..evaluate.conftest import llama, save

ROOT = Path(__file__).parents[2]
Sculpt = Callable[..., Any]
SUITE = "target: {prose: {scorer: perplexity, file: rows.jsonl}}"


def _change(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest base; a fine-tune of it, of an adapter's base, and a tokenizer, whose code leaves a mark."""
    folder = tmp_path_factory.mktemp("code")
    save(llama(0), folder / "base")
    save(llama(1), folder / "sft")
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "rows.jsonl").write_text('{"text": "a word or two"}\n' * 4)
    code = f"open({str(folder / 'this-ran')!r}, 'w').close()\nclass Own: pass\n"
    for name, kind in (("evil-model", "config.json"), ("evil-words", "tokenizer_config.json")):
        evil = shutil.copytree(folder / "sft", folder / name)
        (evil / "own.py").write_text(code)
        autos = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor")
        _change(evil / kind, auto_map=dict.fromkeys(autos, "own.Own") | {"AutoTokenizer": ["own.Own", "own.Own"]})
    # transformers has no such class: without the folder's code there is no model, no tokenizer.
    _change(folder / "evil-model" / "config.json", model_type="own", architectures=["Own"])
    _change(folder / "evil-words" / "tokenizer_config.json", tokenizer_class="Own")
    union = {"merge_method": "linear", "tokenizer_source": "union", "dtype": "float32"}
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in ("base", "evil-words")]
    (folder / "evil-words.yaml").write_text(json.dumps({**union, "models": models}))
    models[1]["model"] = "sft"
    for name in ("evil-model", "sft"):
        (folder / f"{name}.yaml").write_text(json.dumps({**union, "models": models}))
    return folder


COMMANDS = {
    "calibrate": "calibrate {evil} --data rows.jsonl -o x.safetensors",
    "fuse": "fuse base {evil} --data rows.jsonl -o x",
    "lora-train": "lora-train {evil} --data rows.jsonl -o x --max-steps 1 --method lora",
    "eval": "eval {evil} --suite suite.yaml",
    "gate": "gate {evil} --suite suite.yaml --min target=101",
    "sweep": "sweep base {evil} --suite suite.yaml --gamma 0.5 --no-calibration --pick target -o x",
    "lora-extract": "lora-extract {evil} base --rank 2 --exclude model.embed_tokens.weight -o x",
    "merge": "merge {evil}.yaml -o x",
}


@pytest.mark.parametrize("evil", ["evil-model", "evil-words"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_a_folders_code(command: str, evil: str, home: Path, tmp_path: Path, sculpt: Sculpt) -> None:
    for entry in home.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    done = sculpt(*COMMANDS[command].format(evil=evil).split(), cwd=tmp_path)
    assert not (home / "this-ran").exists()
    assert not done.asked
    needs_it = (command, evil) not in (("lora-extract", "evil-words"), ("merge", "evil-model"))
    assert (done.code == 1) == needs_it, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_does_its_work_without_the_network(
    command: str, home: Path, tmp_path: Path, sculpt: Sculpt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of the hub in a config is no reason to ask there; whoever opens a socket ends the test."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for entry in home.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "sft").unlink()
    _change(Path(shutil.copytree(home / "sft", tmp_path / "sft")) / "config.json", _name_or_path="org/some-model")
    done = sculpt(*COMMANDS[command].format(evil="sft").split(), cwd=tmp_path)
    assert done.code == (3 if command == "gate" else 0), done.stderr  # whose limit no model reaches
    assert "Traceback" not in done.stderr


def test_one_module_alone_calls_from_pretrained() -> None:
    """Whoever else called it could forget to say that no code may run."""
    callers = set()
    for file in ROOT.rglob("*.py"):
        place = file.relative_to(ROOT)
        if place.parts[0] in ("tests", "benchmarks", "docs") or place.parts[0].startswith(".venv"):
            continue
        if any(
            isinstance(n, ast.Attribute) and n.attr == "from_pretrained" for n in ast.walk(ast.parse(file.read_text()))
        ):
            callers.add(place.as_posix())
    assert callers == {"fusion/checkpoint/pretrained.py"}


@pytest.mark.parametrize("attention", ["evil-org/evil-repo@main", "flash_attention_2", "flex_attention", "nonsense", 5])
def test_a_config_does_not_choose_how_attention_is_computed(attention: object, home: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(home / "sft", tmp_path / "model")
    _change(folder / "config.json", _attn_implementation=attention, attn_implementation=attention)
    with load_model(folder, device="cpu") as live:
        assert live.model.config._attn_implementation == "sdpa"
    assert ModelNames(Checkpoint(folder)).find("model.norm.weight") is not None


@pytest.mark.parametrize("count", [100_000, 4e20])
def test_layers_that_the_weights_do_not_have_are_not_built(count: float, home: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(home / "sft", tmp_path / "model")
    _change(folder / "config.json", num_hidden_layers=count)
    for build in (lambda: load_model(folder), lambda: ModelNames(Checkpoint(folder)).find("x")):
        with pytest.raises(ModelError, match="says `num_hidden_layers"):
            build()
