"""Real architectures at a tiny size, in the file layouts that people had when they reported what went wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def model(kind: str = "Llama", head: str = "ForCausalLM", *, seed: int = 0, **options: Any) -> Any:
    """Return a random model, such as `LlamaForCausalLM`, of our sizes."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **options})
    return getattr(transformers, f"{kind}{head}")(config)


def moved(found: Any, seed: int = 1, strength: float = 0.02) -> Any:
    """Return the model with noise on every parameter: a fine-tune of it."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=strength)
    return found


def saved(found: Any, folder: Path, **config: Any) -> Path:
    """Return a folder in which a model was saved, with keys of its `config.json` set, or taken out where None."""
    found.save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    said = {key: value for key, value in {**said, **config}.items() if value is not None or key not in config}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def pair(folder: Path, **options: Any) -> tuple[Path, Path]:
    """Return the folders of a model and of a fine-tune of it."""
    base = saved(model(**options), folder / "base")
    return base, saved(moved(model(**options)), folder / "tuned")


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder with one weight file."""
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
    """Change the tensors of a folder with one weight file."""
    changed = {name: tensor.contiguous().clone() for name, tensor in change(tensors_of(folder)).items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


def config_of(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's `config.json`."""
    return json.loads((folder / "config.json").read_text())


def loads(folder: Path, auto: str = "AutoModelForCausalLM") -> Any:
    """Return the model that transformers loads, having found a tensor for every parameter and a use for each."""
    found, report = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    problems = {key: value for key, value in report.items() if value}
    assert not problems, problems
    return found
