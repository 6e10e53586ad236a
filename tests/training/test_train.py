"""`lora-train` as it is typed: whole adapters, killed runs, images, baselines, refusals."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from sculpt.fusion.checkpoint import open_checkpoint
from sculpt.fusion.errors import SculptError
from sculpt.training import AdapterMethod, Schedule, train, train_adapter

from ..commands import invoke
from . import tiny

FEW = ("--rank", "4", "--warmup-steps", "3", "--max-steps", "6", "--batch-size", "4", "--learning-rate", "0.01")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama_folder(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny.sentences(tmp_path / "d.jsonl")


def test_an_adapter_is_trained_sparse_and_loads_in_peft(base, data, tmp_path):
    out = tmp_path / "out"
    result = invoke("lora-train", base, "--data", data, "-o", out, *FEW, "--density", "0.2,0.1", "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert (printed["steps"], printed["num_modules"], printed["num_samples"]) == (6, 14, 24)
    assert {"loss", "loss_task", "cmr", "density", "term_share"} <= set(printed["log"][-1])
    assert not list(tmp_path.glob("out.*"))
    for name, tensor in load_file(out / "adapter_model.safetensors").items():
        assert np.count_nonzero(tensor) == int((0.2 if "lora_A" in name else 0.1) * tensor.size)
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PeftModel.from_pretrained(tiny.llama(), out)
    fused = invoke("task-arithmetic", base, out, "--config", "lorasculpt", "-o", tmp_path / "fused")
    assert fused.exit_code == 0, fused.output
    again = invoke("lora-train", base, "--data", data, "-o", out, *FEW)
    assert isinstance(again.exception, SculptError)
    assert "exists" in again.exception.message
    shown = invoke("lora-train", base, "--data", data, "-o", out, *FEW, "--overwrite")
    words = " ".join(shown.stderr.split())
    assert "CMR" in words
    assert "14 modules" in words


@pytest.mark.parametrize("method", ["lora", "dora", "l2", "orth"])
def test_what_it_is_compared_with(method, base, data, tmp_path):
    options = [option for option in FEW if option not in ("--warmup-steps", "3")]
    result = invoke("lora-train", base, "--data", data, "-o", tmp_path / "out", *options, "--method", method, "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["density"] is None
    assert (method in printed["log"][-1]) == (method in ("l2", "orth"))
    tensors = load_file(tmp_path / "out/adapter_model.safetensors")
    assert any("magnitude" in name for name in tensors) == (method == "dora")


class Killed(BaseException):
    """As a signal raises it."""


def test_a_killed_run_goes_on_to_the_same_bits(base, data, tmp_path):
    method = AdapterMethod(rank=4, warmup_steps=3)
    schedule = Schedule(max_steps=10, batch_size=4, learning_rate=1e-2, save_steps=4)
    train_adapter(base, data=data, output=tmp_path / "whole/out", method=method, schedule=schedule)

    def kill(done: int, _total: int, what: str) -> None:
        if done == 6 and what != "reading data":
            raise Killed

    with pytest.raises(Killed):
        train_adapter(base, data=data, output=tmp_path / "cut/out", method=method, schedule=schedule, progress=kill)
    assert not (tmp_path / "cut/out").exists()
    # A checkpoint that was being written when the run was killed does not count.
    (tmp_path / "cut/out.partial/checkpoints/checkpoint-5").mkdir()
    other = AdapterMethod(rank=4, warmup_steps=2)
    with pytest.raises(SculptError, match="`warmup_steps` was 3, and is 2"):
        train_adapter(base, data=data, output=tmp_path / "cut/out", method=other, schedule=schedule)
    resumed = train_adapter(base, data=data, output=tmp_path / "cut/out", method=method, schedule=schedule)
    assert resumed.resumed_from == 4
    for file in (
        "adapter_model.safetensors",
        "adapter_config.json",
        "sculpt-adapter.json",
    ):  # no clock in them
        assert (tmp_path / "whole/out" / file).read_bytes() == (tmp_path / "cut/out" / file).read_bytes()
    record = json.loads((tmp_path / "cut/out/sculpt-adapter.json").read_text())
    assert isinstance(record["settings"]["base"], str)  # a fingerprint: when a file was written is nobody's business
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("method", ["lorasculpt", "lora"])
def test_a_run_that_was_killed_after_its_last_step_makes_no_other(method, base, data, tmp_path, monkeypatch):
    chosen = AdapterMethod(method=method, rank=4, **({"warmup_steps": 2} if method == "lorasculpt" else {}))
    schedule = Schedule(max_steps=4, batch_size=4, learning_rate=1e-2, save_steps=3)
    train_adapter(base, data=data, output=tmp_path / "whole/out", method=chosen, schedule=schedule)

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(train, "publish_adapter", kill)
        with pytest.raises(Killed):
            train_adapter(base, data=data, output=tmp_path / "cut/out", method=chosen, schedule=schedule)
    resumed = train_adapter(base, data=data, output=tmp_path / "cut/out", method=chosen, schedule=schedule)
    assert (resumed.resumed_from, resumed.steps) == (4, 4)
    for file in ("adapter_model.safetensors", "sculpt-adapter.json"):
        assert (tmp_path / "whole/out" / file).read_bytes() == (tmp_path / "cut/out" / file).read_bytes()


def test_images_with_text_and_a_connector(tmp_path):
    base = tiny.llava_folder(tmp_path / "llava")
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a b"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "c"}]}
    rows: list[dict[str, Any]] = [{"image": tiny.picture(k), "messages": [user, answer]} for k in range(6)]
    data = tiny.write_rows(tmp_path / "d.jsonl", *rows)
    result = invoke(
        "lora-train", base, "--data", data, "-o", tmp_path / "out", *FEW, "--connector", "*multi_modal_projector*",
        "--gradient-accumulation", "2", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["num_modules"] == 16
    assert printed["log"][-1]["connector"] > 0
    for name, tensor in load_file(tmp_path / "out/adapter_model.safetensors").items():
        assert "vision" not in name
        assert (np.count_nonzero(tensor) < tensor.size / 2) != ("multi_modal_projector" in name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_connector_is_trained_whole_at_its_own_rate(dtype, tmp_path):
    base = tiny.llava_folder(tmp_path / "llava")
    rows = [{"image": tiny.picture(k), "prompt": "a b", "completion": " c"} for k in range(6)]
    data = tiny.write_rows(tmp_path / "d.jsonl", *rows)
    options = ["--connector", "*multi_modal_projector*", "--connector-full", "--connector-learning-rate", "1e-5"]
    out = tmp_path / "out"
    result = invoke("lora-train", base, "--data", data, "-o", out, *FEW, *options, "--dtype", dtype, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["num_modules"] == 14
    assert "connector" not in json.loads(result.stdout)["log"][-1]
    before = open_checkpoint(base)
    tuned = open_checkpoint(out, before)
    whole = [name for name in tuned.changed or () if "multi_modal_projector" in name]
    assert len(whole) == 4
    for name in whole:  # Adam moves a weight by no more than the rate in a step, or little more
        moved = np.abs(tuned.read(name).astype(np.float32) - before.read(name).astype(np.float32)).max()
        assert (0 < moved < 8e-5) or dtype == "bfloat16"
    tensors = load_file(out / "adapter_model.safetensors")
    assert all(tensor.dtype == np.float32 for tensor in tensors.values())
    assert max(np.abs(tensor).max() for name, tensor in tensors.items() if "lora_B" in name) > 1e-2


def test_adapters_of_every_epoch_are_kept_and_rows_may_be_drawn(base, data, tmp_path):
    out = tmp_path / "out"
    options = [*FEW[:4], "--batch-size", "4", "--epochs", "2", "--samples", "12", "--keep-epochs", "--json"]
    result = invoke("lora-train", base, "--data", data, "-o", out, *options)
    assert result.exit_code == 0, result.output
    assert (json.loads(result.stdout)["num_samples"], json.loads(result.stdout)["steps"]) == (12, 6)
    folders = sorted(path.name for path in tmp_path.glob("out*"))
    assert folders == ["out", "out-epoch-1", "out-epoch-2"]
    first, second, last = ((tmp_path / n / "adapter_model.safetensors").read_bytes() for n in (*folders[1:], "out"))
    assert first != second == last


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_bases(dtype, base, data, tmp_path):
    schedule = Schedule(max_steps=3, batch_size=4, dtype=dtype)
    method = AdapterMethod(rank=4, warmup_steps=2)
    train_adapter(base, data=data, output=tmp_path / "out", method=method, schedule=schedule)
    for tensor in load_file(tmp_path / "out/adapter_model.safetensors").values():
        assert tensor.dtype == np.float32
        assert np.isfinite(tensor).all()


REFUSALS = {
    "density of lora": (["--method", "lora", "--density", "0.2"], "`density` would have no effect"),
    "strength of lorasculpt": (["--strength", "0.1"], "`strength` would have no effect"),
    "beta alone": (["--beta", "0.1"], "without `connector`"),
    "warm-up of one step": (["--warmup-steps", "1"], "`warmup_steps` must be at least 2"),
    "whole connector of none": (["--connector-full"], "`connector_full` would have no effect without `connector`"),
    "beta of a whole": (["--connector", "*p*", "--connector-full", "--beta", "1"], "trained whole"),
    "rank": (["--rank", "0"], "`rank` must be at least 1"),
    "density": (["--density", "10"], "must lie between 0 and 1"),
    "warm-up": (["--warmup-steps", "6", "--max-steps", "6"], "leaves none of the 6"),
    "target": (["--target-modules", "nothing"], "no linear layer matches `nothing`"),
    "connector": (["--connector", "*projector*"], "no linear layer matches the connector"),
    "guard": (["--warmup-steps", "3", "--guard", "lm_head"], "none of the adapted modules"),
    "learning rate": (["--learning-rate", "0"], "`learning_rate` must be a finite number above 0"),
    "device": (["--device", "nowhere"], "cannot be used"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_sentence_and_leave_no_output(case, base, data, tmp_path):
    options, words = REFUSALS[case]
    result = invoke("lora-train", base, "--data", data, "-o", tmp_path / "out", "--max-steps", "6", *options)
    assert isinstance(result.exception, SculptError), result.output
    assert words in result.exception.message
    assert not (tmp_path / "out").exists()


def test_a_diverging_run_is_stopped_and_peft_may_be_missing(base, data, tmp_path, monkeypatch):
    schedule = Schedule(max_steps=30, batch_size=4, learning_rate=1e18)
    with pytest.raises(SculptError, match=r"loss is (nan|inf)|not finite"):
        train_adapter(
            base, data=data, output=tmp_path / "a", method=AdapterMethod(method="lora", rank=4), schedule=schedule
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl"]  # so that a lower rate begins anew
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(SculptError, match="needs PEFT") as caught:
        train_adapter(base, data=data, output=tmp_path / "b")
    assert "checkpoint-sculpt[train]" in (caught.value.hint or "")
