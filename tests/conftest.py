"""Tiny checkpoints on disk, as transformers lays them out."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file


@pytest.fixture(scope="session")
def device_without_float64() -> Callable[[], AbstractContextManager[str]]:
    """Return a context manager in which there is such a device, as Apple's is; it yields the device's name."""
    return runpy.run_path(str(Path(__file__).with_name("without_float64.py")))["device_without_float64"]


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def sculpt(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Return what runs a command line, as it is typed, in this process: to import all again for each takes minutes."""
    from sculpt.cli.app import main

    def run(*arguments: str | Path, cwd: Path | None = None) -> Done:
        if cwd is not None:
            monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["sculpt", *map(str, arguments)])
        monkeypatch.setattr(os, "environ", os.environ.copy())
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as left:
                main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        told = capfd.readouterr()
        return Done(returncode=int(left.value.code or 0), stdout=told.out, stderr=told.err)

    return run


@pytest.fixture(scope="session")
def together() -> Iterator[Callable[..., list[tuple[int, str]]]]:
    """Return what runs commands in several real processes, and gives the exit code of each and what it said.

    The first line that each says is the number of processes, as sculpt was told it.
    """
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("processes_of_one.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def run(
        count: int,
        folder: Path,
        *commands: Sequence[object],
        dies: int | None = None,
        environment: Sequence[Mapping[str, str]] | None = None,
    ) -> list[tuple[int, str]]:
        folder.mkdir(exist_ok=True)
        job = {
            "count": count,
            "folder": str(folder),
            "commands": [[str(word) for word in words] for words in commands],
            "dies": dies,
            "environment": environment or [{}] * count,
        }
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        found = [(code, said) for code, said in json.loads(server.stdout.readline())]
        assert [said.partition("\n")[0] for _, said in found] == [str(count)] * count
        return found

    yield run
    server.stdin.close()
    server.wait()
    server.stdout.close()


DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float64": np.dtype(np.float64),
}
Tensors = Mapping[str, np.ndarray]


def write_checkpoint(
    folder: Path, tensors: Tensors, *, config: Mapping[str, Any] | None = None, shards: int = 1
) -> Path:
    """Write a folder in the transformers layout, with `shards` files of about as many tensors each."""
    folder.mkdir(parents=True)
    names = list(tensors)
    per_shard = -(-len(names) // shards)
    groups = [names[i : i + per_shard] for i in range(0, len(names), per_shard)]
    if len(groups) == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map = {}
        for i, group in enumerate(groups, 1):
            file = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
            save_file({name: tensors[name] for name in group}, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(group, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def llama_tensors(seed: int, dtype: str = "bfloat16", layers: int = 2) -> dict[str, np.ndarray]:
    """Return random tensors with the names and proportions of a small Llama that ties its embedding."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (97, 32)}
    for i in range(layers):
        shapes |= {
            f"model.layers.{i}.input_layernorm.weight": (32,),
            f"model.layers.{i}.mlp.down_proj.weight": (32, 72),
            f"model.layers.{i}.mlp.up_proj.weight": (72, 32),
            f"model.layers.{i}.self_attn.q_proj.weight": (32, 32),
        }
    shapes["model.norm.weight"] = (32,)
    return {name: (rng.standard_normal(shape) * 0.05).astype(DTYPES[dtype]) for name, shape in shapes.items()}


LLAMA_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "tie_word_embeddings": True,
    "vocab_size": 97,
}


def fine_tuned(tensors: Tensors, seed: int = 1, strength: float = 0.01) -> dict[str, np.ndarray]:
    """Return the tensors moved by heavy-tailed noise; every ninth element stays as it was."""
    rng = np.random.default_rng(seed)
    moved = {}
    for name, tensor in tensors.items():
        noise = rng.standard_t(3, tensor.shape) * strength
        noise.reshape(-1)[::9] = 0
        moved[name] = (tensor.astype(np.float64) + noise).astype(tensor.dtype)
    return moved


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Return `write_checkpoint` with names relative to the test's own folder."""

    def make(name: str, tensors: Tensors, **options: Any) -> Path:
        return write_checkpoint(tmp_path / name, tensors, **options)

    return make


@pytest.fixture
def make_pair(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Return a maker of base and tuned: two shards, a tied embedding, any dtype."""

    def make(dtype: str = "bfloat16", *, shards: int = 2, name: str = "") -> tuple[Path, Path]:
        base = llama_tensors(0, dtype)
        return (
            write_checkpoint(tmp_path / f"{name}base", base, config=LLAMA_CONFIG, shards=shards),
            write_checkpoint(tmp_path / f"{name}sft", fine_tuned(base), config=LLAMA_CONFIG, shards=shards),
        )

    return make


@pytest.fixture
def tensors_of() -> Callable[[Path], dict[str, np.ndarray]]:
    """Return a reader of all tensors of a checkpoint, through the safetensors library, not through ours."""
    from safetensors.torch import load_file

    def read(folder: Path) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for file in sorted(folder.glob("model*.safetensors")):
            for name, tensor in load_file(file).items():
                array = (
                    tensor.view(dtype=__import__("torch").int16).numpy()
                    if "bfloat16" in str(tensor.dtype)
                    else tensor.numpy()
                )
                found[name] = array.view(ml_dtypes.bfloat16) if "bfloat16" in str(tensor.dtype) else array
        return found

    return read


def same_bits(first: Tensors, second: Tensors) -> bool:
    """Return whether two sets of tensors agree in names, dtypes, shapes and every bit."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and first[name].tobytes() == second[name].tobytes()
        for name in first
    )


@pytest.fixture(name="same_bits")
def _same_bits() -> Callable[[Tensors, Tensors], bool]:
    return same_bits
