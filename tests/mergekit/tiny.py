"""Tiny Llama checkpoints, and mergekit run on them in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

NUM_LAYERS = 4
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def environment() -> Path | None:
    """Return the Python of mergekit's environment, if there is one."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sculpt" / "mergekit"
    python = Path(os.environ.get("SCULPT_MERGEKIT") or cache) / "bin" / "python"
    return python if python.is_file() else None


def llama(seed: int) -> dict[str, np.ndarray]:
    """Return the tensors of a small Llama in float32."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (96, 32)}
    for i in range(NUM_LAYERS):
        shapes |= {f"model.layers.{i}.{norm}_layernorm.weight": (32,) for norm in ("input", "post_attention")}
        shapes |= {f"model.layers.{i}.mlp.{name}_proj.weight": (64, 32) for name in ("gate", "up")}
        shapes[f"model.layers.{i}.mlp.down_proj.weight"] = (32, 64)
        shapes |= {f"model.layers.{i}.self_attn.{name}_proj.weight": (32, 32) for name in ("q", "o")}
        shapes |= {f"model.layers.{i}.self_attn.{name}_proj.weight": (16, 32) for name in ("k", "v")}
    shapes |= {"model.norm.weight": (32,), "lm_head.weight": (96, 32)}
    return {name: (rng.standard_normal(shape) * 0.3).astype(np.float32) for name, shape in shapes.items()}


def moved(tensors: Mapping[str, np.ndarray], seed: int, size: float = 0.2) -> dict[str, np.ndarray]:
    """Return the tensors of a far fine-tune: near ones are parallel, and mergekit's float32 angles are noise."""
    rng = np.random.default_rng(seed)
    return {n: (t + rng.standard_t(4, t.shape) * size).astype(np.float32) for n, t in tensors.items()}


def write(folder: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] = CONFIG) -> Path:
    from safetensors.numpy import save_file

    folder.mkdir()
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_adapter(folder: Path, seed: int) -> Path:
    """Write a LoRA adapter of the queries and values, as PEFT does."""
    from safetensors.numpy import save_file

    rng, factors = np.random.default_rng(seed), {}
    for i in range(NUM_LAYERS):
        for name, width in (("q", 32), ("v", 16)):
            module = f"base_model.model.model.layers.{i}.self_attn.{name}_proj"
            factors[f"{module}.lora_A.weight"] = (rng.standard_normal((4, 32)) * 0.1).astype(np.float32)
            factors[f"{module}.lora_B.weight"] = (rng.standard_normal((width, 4)) * 0.3).astype(np.float32)
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}


def with_paths(recipe: Any, folder: Path) -> Any:
    """Return a recipe with the models' short names replaced by their folders."""
    if isinstance(recipe, dict):
        return {
            key: "+".join(str(folder / name) for name in value.split("+"))
            if key in ("model", "base_model")
            else with_paths(value, folder)
            for key, value in recipe.items()
        }
    return [with_paths(item, folder) for item in recipe] if isinstance(recipe, list) else recipe


def run_mergekit(python: Path, recipes: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Run all recipes in one process; return their outputs by name."""
    jobs = []
    for name, recipe in recipes.items():
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(recipe))
        jobs.append([str(file), str(folder / name)])
    done = subprocess.run(
        [python, Path(__file__).with_name("run_all.py")],
        input=json.dumps(jobs),
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: folder / name for name in recipes}
