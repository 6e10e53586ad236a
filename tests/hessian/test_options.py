"""What is kept, what is stopped, what is spilled, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sculpt.data.batching import Room
from sculpt.data.example import Example
from sculpt.fusion.errors import CurvatureError, DataError, ModelError, OutputError
from sculpt.hessian import CalibrationOptions, DiagonalHessian, calibrate
from sculpt.hessian.session import Session

from . import zoo


def same(first: DiagonalHessian, second: DiagonalHessian) -> bool:
    return set(first) == set(second) and all(
        first[name].num_tokens == second[name].num_tokens
        and all(np.array_equal(a, b) for a, b in zip(first[name].terms, second[name].terms, strict=True))
        for name in first
    )


def edit(folder: Path, copy: Path, change: dict[str, torch.Tensor]) -> Path:
    """Copy a checkpoint with some tensors replaced."""
    shutil.copytree(folder, copy)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, **change}, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_only_changed_measures_what_differs_and_reads_no_further(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    base = edit(folder, tmp_path / "base", {name: tensors[name] + 1})
    whole = calibrate(folder, data=data)
    with Session(folder, CalibrationOptions(data=data, only_changed=base)) as session:
        found = {key: value for block in session.blocks() for key, value in block.items()}
        reasons = session.collector.why_missing(found)
        reads = session.weights.reads
    assert set(found) == {name}
    assert np.array_equal(found[name].terms[0], whole[name].terms[0])
    assert not any(key.startswith(("model.layers.1", "lm_head", "model.norm")) for key in reads)
    assert set(reasons.values()) == {"the same as in the base"}


def test_only_changed_refuses_a_base_that_is_the_same(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    with pytest.raises(CurvatureError, match="no tensor of"):
        calibrate(folder, data=data, only_changed=folder)


EXPECTED_MATRICES = {"llama": 7 * 2 + 1, "gpt2": 4 * 2 + 1, "mixtral": 2 * (4 + 1 + 3 * 4) + 1}


@pytest.mark.parametrize("name", EXPECTED_MATRICES)
def test_full_matrices_have_the_diagonals_that_are_summed_apart(name: str, tmp_path: Path) -> None:
    animal = zoo.ALL[name]
    folder, data = zoo.settle(animal, tmp_path)
    hessian = calibrate(folder, data=data, full=["*"])
    for tensor, curvature in hessian.items():
        if curvature.gram is None:
            continue
        diagonal = np.diagonal(curvature.gram, axis1=-2, axis2=-1)
        sums = [term.reshape(-1) for term in curvature.terms if term.size == diagonal.size]
        assert any(np.allclose(term, diagonal.reshape(-1), rtol=1e-5) for term in sums), tensor
        np.testing.assert_allclose(
            curvature.gram, np.swapaxes(curvature.gram, -1, -2), rtol=1e-5, atol=1e-6 * float(diagonal.max())
        )
    matrices = [tensor for tensor, curvature in hessian.items() if curvature.gram is not None]
    assert len(matrices) == EXPECTED_MATRICES[name], matrices


def test_a_full_matrix_is_the_sum_of_outer_products(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    name = "model.layers.1.mlp.down_proj.weight"
    hessian = calibrate(folder, data=data, full=["*.1.mlp.down*"], batch_size=1)
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    expected = torch.zeros(48, 48, dtype=torch.float64)

    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0].double().reshape(-1, 48)
        expected.add_(x.T @ x)

    model.get_submodule("model.layers.1.mlp.down_proj").register_forward_pre_hook(hook)
    with torch.no_grad():
        for line in data.read_text().splitlines():
            model(input_ids=torch.tensor([json.loads(line)["input_ids"]]))
    gram = hessian[name].gram
    assert gram is not None
    np.testing.assert_allclose(gram, expected.numpy(), rtol=1e-4, atol=1e-9)
    assert [key for key in hessian if hessian[key].gram is not None] == [name]


@pytest.mark.parametrize(("name", "host_bytes"), [("llama", 1 << 30), ("t5", 0), ("llava", 10_000)])
def test_activations_that_go_to_the_host_or_to_disk_change_no_bit(
    name: str, host_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sculpt.hessian.forward.activations.SMALLEST_SPILL_BYTES", 1)
    folder, data = zoo.settle(zoo.ALL[name], tmp_path)
    kept = calibrate(folder, data=data)
    with Session(folder, CalibrationOptions(data=data, memory=0)) as session:
        session.activations.host_bytes = host_bytes
        found = {key: value for block in session.blocks() for key, value in block.items()}
        assert (session.activations.bytes_spilled > 0) == (name != "llama")
        assert session.activations._in_host == 0
        assert session.activations.bytes_held == 0
    assert all(np.array_equal(found[key].terms[0], kept[key].terms[0]) for key in kept)


def test_a_tie_that_is_stored_twice_is_used_both_ways(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama-tied"], tmp_path)
    tensors = load_file(folder / "model.safetensors")
    twice = edit(folder, tmp_path / "twice", {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    once, both = calibrate(folder, data=data), calibrate(twice, data=data)
    tied = once["model.embed_tokens.weight"]
    assert {term.shape for term in tied.terms} == {(zoo.VOCAB, 1), (1, 32)}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert {term.shape for term in both[name].terms} == {(zoo.VOCAB, 1), (1, 32)}
        for term in both[name].terms:
            (same_term,) = [other for other in tied.terms if other.shape == term.shape]
            np.testing.assert_allclose(term, same_term, rtol=1e-12)


def test_blocks_come_one_by_one_and_hold_everything_once(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama-tied"], tmp_path)
    with Session(folder, CalibrationOptions(data=data)) as session:
        blocks = list(session.blocks())
    names = [name for block in blocks for name in block]
    whole = calibrate(folder, data=data)
    assert len(names) == len(set(names))
    assert set(names) == set(whole)
    assert len(blocks) > 3
    assert set(blocks[-1]) == {"model.embed_tokens.weight"}


def test_same_arguments_give_the_same_bytes_and_another_seed_other_samples(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path, num_rows=12)
    files = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for file, seed in zip(files, (3, 3, 4), strict=True):
        calibrate(folder, data=data, output=file, samples=4, seed=seed)
    assert files[0].read_bytes() == files[1].read_bytes()
    first, other = DiagonalHessian.load(files[0]), DiagonalHessian.load(files[2])
    assert first.provenance.data_digest != other.provenance.data_digest
    assert not same(first, other)


def test_a_larger_sample_holds_the_smaller_one(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path, num_rows=12)

    def inputs(samples: int) -> set[tuple[int, ...]]:
        with Session(folder, CalibrationOptions(data=data, samples=samples)) as session:
            return {tuple(sample.inputs["input_ids"][0].tolist()) for sample in session.samples}

    assert len(inputs(4)) == 4
    assert inputs(4) < inputs(7) < inputs(12)


def test_a_checkpoint_in_bfloat16_runs_in_float32(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    half = edit(folder, tmp_path / "half", tensors)
    hessian = calibrate(half, data=data)
    assert hessian.provenance.dtype == "float32"
    wide = edit(folder, tmp_path / "wide", {name: tensor.float() for name, tensor in tensors.items()})
    same = calibrate(wide, data=data)
    assert all(np.array_equal(hessian[name].terms[0], same[name].terms[0]) for name in same)
    low = calibrate(half, data=data, dtype="bfloat16")
    assert low.provenance.dtype == "bfloat16"
    assert set(low) == set(hessian)
    np.testing.assert_allclose(
        low["model.layers.0.self_attn.q_proj.weight"].terms[0],
        hessian["model.layers.0.self_attn.q_proj.weight"].terms[0],
        rtol=0.05,
    )


def test_what_a_model_wants_in_float32_is_in_float32(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["t5"], tmp_path)
    with Session(folder, CalibrationOptions(data=data, dtype="float16")) as session:
        dtypes = {name: parameter.dtype for name, parameter in session.model.named_parameters()}
        found = list(session.blocks())
    assert {dtype for name, dtype in dtypes.items() if ".wo." in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if ".wo." not in name} == {torch.float16}
    assert found


def test_shards_and_torch_files_give_the_same_bits(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["mixtral"], tmp_path)
    sharded, _ = zoo.settle(zoo.TEXT["mixtral"], tmp_path / "sharded", max_shard_size="30KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    torch.save(load_file(folder / "model.safetensors"), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    whole = calibrate(folder, data=data)
    assert same(calibrate(sharded, data=data), whole)
    assert same(calibrate(old, data=data), whole)


def test_infinite_activations_are_refused_by_name(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    broken = edit(folder, tmp_path / "broken", {name: torch.full_like(tensors[name], float("inf"))})
    with pytest.raises(CurvatureError, match=r"`model.layers.0.mlp.up_proj.weight` of .* holds NaN or infinity"):
        calibrate(broken, data=data)


def test_an_existing_output_is_refused(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    target = tmp_path / "out.safetensors"
    target.write_text("precious")
    with pytest.raises(OutputError, match="exists"):
        calibrate(folder, data=data, output=target)
    assert target.read_text() == "precious"


def test_weights_of_another_shape_are_refused_before_any_is_read(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(ModelError, match=r"\[48, 32\].*\[64, 32\]|\[32, 48\].*\[32, 64\]"):
        calibrate(folder, data=data)


def test_a_checkpoint_that_lacks_a_layer_is_refused(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"lacks `model.layers.2.*and \d+ more"):
        calibrate(folder, data=data)


def test_model_code_in_the_folder_is_not_run_unasked(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["OwnModel"], "auto_map": {"AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(ModelError, match="needs the code"):
        calibrate(folder, data=data)


def test_another_class_can_be_asked_for(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path)
    hessian = calibrate(folder, data=data, auto_class="AutoModel")
    assert hessian.provenance.model_class == "LlamaModel"
    assert hessian.why_missing == {"lm_head.weight": "no part of `LlamaModel`"}
    with pytest.raises(ModelError, match="AutoModelForNothing"):
        calibrate(folder, data=data, auto_class="AutoModelForNothing")


def test_short_samples_fill_batches_of_so_many_tokens_and_change_no_statistic(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path, num_rows=7)
    with Session(folder, CalibrationOptions(data=data, batch_tokens=20)) as session:
        batches = session._batches()
        longest = max(sample.length for sample in session.samples)
    assert 1 < len(batches) < 7
    assert all(batch.num_samples == 1 or batch.masks[0].shape[0] * longest <= 40 for batch in batches)
    alone, together = calibrate(folder, data=data, batch_size=1), calibrate(folder, data=data, batch_tokens=20)
    for name in alone:
        assert alone[name].num_tokens == together[name].num_tokens
        for ours, theirs in zip(alone[name].terms, together[name].terms, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, err_msg=name)


def test_short_samples_run_together_unless_told_otherwise(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.TEXT["llama"], tmp_path, num_rows=7)
    counts = []
    for given in ({}, {"batch_size": 1}, {"batch_size": 4}):
        with Session(folder, CalibrationOptions(data=data, **given)) as session:
            counts.append([batch.num_samples for batch in session._batches()])
    assert counts == [[7], [1] * 7, [4, 3]]


def test_samples_with_images_run_alone_as_tokens_do_not_say_how_large_they_are() -> None:
    one = Example(
        inputs={"input_ids": torch.ones(1, 3, dtype=torch.int64), "pixel_values": torch.zeros(1, 3, 64, 64)},
        tokens=torch.ones(1, 3, dtype=torch.int64),
        answers=torch.zeros(1, 3, dtype=torch.int64),
    )
    assert [len(part) for part in Room(tokens=2048).filled([one] * 3)] == [1, 1, 1]
    assert [len(part) for part in Room(samples=2, tokens=2048).filled([one] * 3)] == [2, 1]


def test_samples_of_very_different_lengths_do_not_share_a_batch() -> None:
    def sample(length: int) -> Example:
        tokens = torch.ones(1, length, dtype=torch.int64)
        return Example(what="a text", inputs={"input_ids": tokens}, tokens=tokens, answers=torch.zeros_like(tokens))

    samples = [sample(length) for length in (400, 390, 380, 100, 99, 98)]
    assert [len(part) for part in Room(tokens=2048).filled(samples)] == [3, 3]
    assert [len(part) for part in Room(samples=6).filled(samples)] == [6]  # as they were asked for


@pytest.mark.parametrize("option", ["samples", "max_length", "batch_size", "batch_tokens"])
def test_counts_below_one_are_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"`{option}` must be at least 1, got 0"):
        calibrate(tmp_path, **{option: 0})


def test_importing_the_room_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, sculpt.hessian; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
