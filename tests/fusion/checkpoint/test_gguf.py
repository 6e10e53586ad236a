"""GGUF files are read as what transformers loads from them, element by element, and bit for bit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import load_file
from sculpt.fusion.checkpoint import open_checkpoint
from sculpt.fusion.checkpoint.gguf.blocks import TYPES, decode
from sculpt.fusion.checkpoint.gguf.rope import llama3
from sculpt.fusion.checkpoint.torch_file import as_array
from sculpt.fusion.errors import CheckpointError
from sculpt.fusion.methods.task_arithmetic import TaskArithmetic
from sculpt.fusion.run.fuse import execute
from sculpt.fusion.run.prepared import prepare
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .gguf_files import MODELS, WIDTH, class_of, hf_model, write, write_said

CODED = [kind for kind in TYPES.values() if kind.plain is None]
QUICK = ("llama", "gemma2", "gpt2", "qwen2moe")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCULPT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", CODED, ids=lambda kind: kind.name)
def test_blocks_are_decoded_to_the_bits_of_the_gguf_package(kind) -> None:
    blocks = np.random.default_rng(kind.number).integers(0, 256, (40, kind.nbytes), dtype=np.uint8) & 0xBF
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, Type(kind.number))
        assert np.isfinite(expected).all()
        for dtype in (np.float32, ml_dtypes.bfloat16, np.float16):
            out = np.empty((len(blocks), kind.elements), dtype)
            decode(kind, blocks, out)
            assert out.tobytes() == expected.astype(dtype).tobytes()


def test_types_are_those_of_the_gguf_package() -> None:
    for kind in TYPES.values():
        assert Type(kind.number).name == kind.name
        assert gguf.GGML_QUANT_SIZES[Type(kind.number)] == (kind.elements, kind.nbytes)


@pytest.mark.parametrize(
    "architecture", [name if name in QUICK else pytest.param(name, marks=pytest.mark.zoo) for name in MODELS]
)
def test_parameters_are_those_that_transformers_loads(architecture: str, tmp_path: Path) -> None:
    file = write(tmp_path / "model.gguf", architecture)
    # The config is given, since transformers does not take all sizes from the file.
    config = hf_model(MODELS[architecture]).config
    cls = class_of(MODELS[architecture])
    loaded = cls.from_pretrained(tmp_path, gguf_file=file.name, config=config, dtype=torch.bfloat16)
    source = open_checkpoint(file)
    state = {name: value for name, value in loaded.state_dict().items() if name in source.tensors}
    assert set(loaded.state_dict()) - set(state) <= set(loaded.all_tied_weights_keys)
    assert set(state) == set(source.tensors)
    for name, value in state.items():
        info = source.tensors[name]
        assert info.shape == tuple(value.shape)
        whole = as_array(value.reshape(-1), info.kind.numpy)
        assert source.read(name).tobytes() == whole.tobytes(), name
        for start, stop in ((0, 1), (len(whole) // 3, len(whole) // 2 + 1), (len(whole) - 1, len(whole))):
            assert source.read(name, start, stop).tobytes() == whole[start:stop].tobytes(), name
        source.release(name, 0, len(whole) // 2)
        source.release(name)


def test_the_output_of_a_fuse_loads_with_config_and_tokenizer(tmp_path: Path) -> None:
    for name in ("base", "sft"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "model.gguf", "llama", kind=Type.Q4_1)
    out = tmp_path / "out"
    execute(prepare(tmp_path / "base", [tmp_path / "sft"], output=out, method=TaskArithmetic(scale=0.5)))
    loaded = LlamaForCausalLM.from_pretrained(out)
    assert loaded.dtype is torch.bfloat16
    assert (loaded.config.eos_token_id, loaded.config.rope_parameters["rope_theta"]) == (257, 10000)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer("the<eos>").input_ids == [258, ord("e"), 257]
    written = load_file(out / "model.safetensors")
    base, tuned = (open_checkpoint(tmp_path / name) for name in ("base", "sft"))
    assert set(written) == set(base.tensors)
    assert all(info.stored == "BF16" for info in base.tensors.values())
    same = [
        (base.read(n) == v.reshape(-1)).mean() + (tuned.read(n) == v.reshape(-1)).mean() for n, v in written.items()
    ]
    assert max(same) < 2
    assert base.decoded == {"GGUF's Q4_1": 16}
    manifest = json.loads((out / "sculpt-manifest.json").read_text())
    assert "tokenizer.json" in {record["name"] for record in manifest["files"]}


def test_a_plain_file_has_the_dtype_that_it_is_stored_in(tmp_path: Path) -> None:
    source = open_checkpoint(write(tmp_path / "model.gguf", "llama", kind=Type.F32))
    assert {info.stored for info in source.tensors.values()} == {"F32"}
    assert not source.decoded
    half = open_checkpoint(write(tmp_path / "half.gguf", "llama", kind=Type.F16))
    assert {info.stored for info in half.tensors.values()} == {"F16"}


def test_a_model_in_parts_is_the_model(tmp_path: Path) -> None:
    whole = write(tmp_path / "model.gguf", "llama")
    parts = tmp_path / "parts"
    parts.mkdir()
    reader = gguf.GGUFReader(whole)
    for number, chosen in enumerate((reader.tensors[:5], reader.tensors[5:]), 1):
        writer = gguf.GGUFWriter(str(parts / f"m-{number:05}-of-00002.gguf"), "llama")
        if number == 1:
            write_said(writer)
        for tensor in chosen:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    one, other = open_checkpoint(whole), open_checkpoint(parts)
    assert set(one.tensors) == set(other.tensors)
    assert all(one.read(name).tobytes() == other.read(name).tobytes() for name in one.tensors)
    assert other.config == one.config
    again = open_checkpoint(parts / "m-00002-of-00002.gguf")
    assert again.fingerprint == other.fingerprint


def test_a_config_and_a_tokenizer_beside_the_file_come_first(tmp_path: Path) -> None:
    file = write(tmp_path / "model.gguf", "llama")
    made = open_checkpoint(file)
    own = {**(made.config or {}), "rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}, "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(own))
    (tmp_path / "tokenizer.json").write_bytes((made.companions()[Path("tokenizer.json")]).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 7}')
    source = open_checkpoint(tmp_path)
    assert source.config == own
    assert {info.stored for info in source.tensors.values()} == {"F32"}
    assert "7" in source.companions()[Path("tokenizer_config.json")].read_text()


def test_what_is_made_of_a_header_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "model.gguf", "llama")
    first = open_checkpoint(file)
    assert len(list((tmp_path / "cache").glob("gguf-*"))) == 1
    monkeypatch.setattr("sculpt.fusion.checkpoint.gguf.described._content", None)  # never asked again
    assert open_checkpoint(file).tensors == first.tensors


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SCULPT_CACHE", str(tmp_path / "file"))
    source = open_checkpoint(write(tmp_path / "model.gguf", "llama"))
    assert source.config is not None
    assert Path("tokenizer.json") in source.companions()


def test_factors_of_llama_3_become_its_config(tmp_path: Path) -> None:
    theta = {"rope.freq_base": 500000.0}
    factors = llama3(500000.0, 8, 8.0).astype(np.float32)
    source = open_checkpoint(write(tmp_path / "a.gguf", "llama", extra={"rope_freqs.weight": factors}, said=theta))
    config = LlamaForCausalLM.config_class.from_dict(source.config or {})
    assert (config.rope_parameters["rope_type"], config.rope_parameters["factor"]) == ("llama3", 8)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    assert np.allclose(500000.0 ** (-np.arange(0, 8, 2) / 8) / factors, scaled.numpy(), rtol=1e-5)
    other = write(tmp_path / "b.gguf", "llama", extra={"rope_freqs.weight": factors + np.float32(0.5)})
    with pytest.raises(CheckpointError, match="other factors"):
        open_checkpoint(other)


def test_what_nobody_understands_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"blk.0.something.weight": np.ones(4, np.float32)}
    with pytest.raises(CheckpointError, match=r"`blk\.0\.something\.weight` of the GGUF file is no parameter"):
        open_checkpoint(write(tmp_path / "a.gguf", "llama", extra=extra))
    with pytest.raises(CheckpointError, match="scales rotary positions by `longrope`"):
        open_checkpoint(write(tmp_path / "b.gguf", "llama", said={"rope.scaling.type": "longrope"}))
    with pytest.raises(CheckpointError, match=r"makes `.*`.*but LlamaForCausalLM has"):
        open_checkpoint(write(tmp_path / "c.gguf", "llama", said={"feed_forward_length": WIDTH}))
    for architecture in ("gpt-oss", "rwkv6"):
        with pytest.raises(CheckpointError, match=f"architecture `{architecture}` are not read"):
            open_checkpoint(write(tmp_path / f"{architecture}.gguf", architecture, found=MODELS["llama"]))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match="is a GGUF file") as caught:
        open_checkpoint(write(tmp_path / "d.gguf", "llama", said={"context_length": 63}))
    assert "checkpoint-sculpt[gguf]" in str(caught.value.hint)
