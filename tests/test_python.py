"""sculpt in Python: models in memory, methods by name, results that show themselves, a function for each command."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sculpt
import torch
from sculpt.fusion.errors import CheckpointError, MethodError
from transformers import AutoModelForCausalLM

from .docs.stand_ins import SUITE, TASK, TEXTS
from .evaluate.conftest import llama, save

SEED = sculpt.Settings(seed=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base, fine-tune, data and a suite."""
    folder = tmp_path_factory.mktemp("python")
    model = llama(0)
    save(model, folder / "base")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save(model, folder / "sft")
    TASK(folder / "train.jsonl")
    TEXTS(folder / "general.jsonl")
    (folder / "suite.yaml").write_text(SUITE)
    return folder


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_models_in_memory_fuse_to_the_bits_of_their_folders(place: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"method": "dare:sparsity=0.5", "settings": SEED}
    of_folders = sculpt.fuse(place / "base", place / "sft", output=tmp_path / "out", **options)
    of_models = sculpt.fuse(loaded(place / "base"), loaded(place / "sft"), **options)
    of_both = sculpt.fuse(place / "base", [loaded(place / "sft")], output=tmp_path / "both", **options)
    expected = sculpt.state_dict(of_folders)
    assert same(sculpt.state_dict(of_models), expected)
    assert same(sculpt.state_dict(of_both), expected)
    assert {record.name for record in of_models.inputs} == {"base", "sft"}
    # The tokenizer is that of the folder which a model was loaded from.
    folder = Path(of_models)
    assert (folder / "tokenizer.json").read_bytes() == (place / "sft/tokenizer.json").read_bytes()
    logits = sculpt.load(of_models)(torch.tensor([[1, 2]])).logits
    assert torch.equal(logits, loaded(tmp_path / "out")(torch.tensor([[1, 2]])).logits)
    del of_models
    assert not folder.exists()


@pytest.mark.parametrize("of", [lambda tensor: tensor, lambda tensor: tensor.numpy()])
def test_tensors_by_name_fuse_as_apply_fuses_them(of: Callable[[torch.Tensor], Any], place: Path) -> None:
    base, tuned = (
        {name: tensor for name, tensor in sculpt.state_dict(place / side).items() if tensor.ndim}
        for side in ("base", "sft")
    )
    made = sculpt.fuse(*({k: of(v) for k, v in side.items()} for side in (base, tuned)), method="ties:density=0.3")
    assert same(sculpt.state_dict(made), sculpt.apply(sculpt.Ties(density=0.3), base, tuned))


def test_what_is_no_model_is_refused(place: Path) -> None:
    with pytest.raises(CheckpointError, match="a model is a path, a model of transformers or PEFT, or"):
        sculpt.fuse(place / "base", 3)
    with pytest.raises(CheckpointError, match="`x` is list, expected an array or tensor"):
        sculpt.fuse({"x": [1.0]}, {"x": [2.0]})


@pytest.mark.parametrize(
    ("method", "message", "hint"),
    [
        ("tise", "no method is called `tise`", "did you mean `ties`?"),
        ("ties:densty=0.2", "`densty=0.2` is not an option of TIES", "density"),
        ("ties:density=much", "`density` must be a number or a list of numbers, got `much`", ""),
    ],
)
def test_a_method_by_a_wrong_name_is_one_sentence(method: str, message: str, hint: str, place: Path) -> None:
    with pytest.raises(MethodError, match=message) as caught:
        sculpt.fuse(place / "base", place / "sft", method=method)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("first", ["sculpt", "sculpt.evaluate.suite", "sculpt.evaluate"])
def test_evaluate_is_a_room_and_its_function_whatever_is_imported_first(first: str) -> None:
    code = f"""
import {first}
import sculpt
called = sculpt.evaluate
import sculpt.evaluate.suite, sculpt.evaluate as room
from sculpt.evaluate.suite import read_suite
from sculpt import evaluate
assert called is room is evaluate is sculpt.evaluate and callable(called) and room.suite.read_suite is read_suite
import subprocess
import sys
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_call_of_the_room_is_one_of_the_function(place: Path) -> None:
    from sculpt.evaluate.evaluate import evaluate

    assert inspect.signature(sculpt.evaluate) == inspect.signature(evaluate)
    assert {"model", "suite"} <= inspect.signature(sculpt.evaluate).parameters.keys()
    with pytest.raises(sculpt.SculptError, match="`nowhere` does not exist"):
        sculpt.evaluate("nowhere", place / "suite.yaml")


def test_options_that_are_no_numbers_are_one_sentence() -> None:
    with pytest.raises(MethodError, match=r"`density` must be a number or a list of numbers, got `0\.2`"):
        sculpt.Ties(density="0.2")  # pyright: ignore[reportArgumentType]
    with pytest.raises(MethodError, match="`gamma` must be a number, got `half`"):
        sculpt.AdaDare(gamma="half")  # pyright: ignore[reportArgumentType]


def test_each_function_takes_models_in_memory_and_returns_what_shows_itself(place: Path, tmp_path: Path) -> None:
    base, tuned = loaded(place / "base"), loaded(place / "sft")
    suite, cpu = place / "suite.yaml", sculpt.Scoring(device="cpu")
    scores = sculpt.evaluate(tuned, suite)
    assert scores.measures == sculpt.evaluate(place / "sft", suite).measures
    swept = sculpt.sweep(
        base, tuned, suite, methods=["task-arithmetic"], strengths=[0.5, 1], pick="target", output=tmp_path / "swept",
        calibration=sculpt.Calibration(), scoring=cpu,
    )  # fmt: skip
    assert [point.strength for point in swept.tried] == [0.5, 1]
    assert swept.picked is not None
    assert sculpt.evaluate(swept.model, suite).measures == swept.picked.scores.measures
    judged = sculpt.gate(tuned, suite, ["prose=0", "prose>=base+1"], base=base, scoring=cpu)
    assert not judged.passed
    assert [verdict.passed for verdict in judged.verdicts] == [True, False]
    answers = sculpt.compare([base, tuned], ["no?"], max_new_tokens=2, scoring=cpu)
    compared = sculpt.benchmark(base, tuned, suite, methods=["dare"], calibration=sculpt.Calibration(), scoring=cpu)
    bounds = sculpt.bound(base, tuned, eta_relative=0.5)
    assert bounds.largest_gamma == sculpt.bound(place / "base", place / "sft", eta_relative=0.5).largest_gamma
    moved = sculpt.moved_from(base, tuned, data=[place / "general.jsonl"])
    assert [kind.kind for kind in moved.kinds] == ["general.jsonl"]
    differs = sculpt.diff(base, tuned)
    for shown in (scores, swept, judged, answers, compared, bounds, differs):
        assert len(repr(shown)) < 300
        assert "<table>" in shown._repr_html_()
    pytest.importorskip("matplotlib")
    assert "data:image/png;base64," in swept._repr_html_()


def test_a_repair_has_a_page_and_is_a_model(place: Path, tmp_path: Path) -> None:
    measured = sculpt.Calibration(
        data=place / "train.jsonl", protect=place / "general.jsonl", samples=2, protect_samples=2, protect_check=False
    )
    repaired = sculpt.repair(place / "base", place / "sft", output=tmp_path / "out", calibration=measured)
    assert sculpt.Manifest.read(repaired.model).method == "two-sided"
    assert repaired.page.read_text().startswith("<!doctype html>")
    assert sculpt.verify(repaired).num_files > 3
    assert "<table>" in repaired._repr_html_()


def test_a_recipe_is_merged_as_the_command_does(place: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"method: dare\nbase: {place / 'base'}\nmodels: [{place / 'sft'}]\nseed: 1\n")
    merged = sculpt.merge(recipe, output=tmp_path / "out", seed=3)
    assert merged.settings["seed"] == 3
    fused = sculpt.fuse(place / "base", place / "sft", method="dare", settings=SEED)
    assert same(sculpt.state_dict(merged), sculpt.state_dict(fused))
    with pytest.raises(MethodError, match="`sed` is not an argument of `merge`"):
        sculpt.merge(recipe, output=tmp_path / "other", sed=3)


def test_a_notebook_shows_a_bar_and_a_script_none(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    handle = SimpleNamespace(update=told.append)
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    display = SimpleNamespace(HTML=str, display=lambda shown, **_: told.append(shown) or handle)
    sculpt.diff(place / "base", place / "sft")
    monkeypatch.setitem(sys.modules, "IPython", ipython)  # pyright: ignore[reportArgumentType]
    monkeypatch.setitem(sys.modules, "IPython.display", display)  # pyright: ignore[reportArgumentType]
    sculpt.diff(place / "base", place / "sft")
    assert told[0].startswith("diff <progress>")
    assert any('max="' in text and "100%" in text for text in told)
    assert told[-1] == ""


def test_public_functions_say_what_they_return_and_raise() -> None:
    for name in sculpt.__all__:
        found = getattr(sculpt, name)
        doc = inspect.getdoc(found) or ""
        assert doc, name
        if inspect.isfunction(found):
            assert "Raises:" in doc or name in ("flips", "method_named", "streaming", "unfinished"), name


def test_arrays_are_read_back_as_they_were_fused() -> None:
    base = {"x": np.zeros((2, 2), np.float16)}
    made = sculpt.fuse(base, {"x": np.ones((2, 2), np.float16)}, method="task-arithmetic:scale=0.5")
    assert sculpt.state_dict(made)["x"].tolist() == [[0.5, 0.5]] * 2
