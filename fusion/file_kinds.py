"""What a file of a model's folder is called, and what it is to the model: the same on a disk, a hub or a bucket."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

# What loaders look for: transformers, PEFT, diffusers.
CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
ADAPTER_CONFIG = "adapter_config.json"
PIPELINE = "model_index.json"  # of diffusers: its models lie in folders of their own
# What sculpt writes beside weights.
MANIFEST = "sculpt-manifest.json"  # only a folder that holds it is ever replaced
TENSORS = "sculpt-tensors.jsonl.gz"  # what the manifest says of each tensor, where there are very many
ADAPTER_RECORD = "sculpt-adapter.json"  # how an adapter was made
SBOM, PROVENANCE, SIGNATURE = "sculpt-sbom.json", "sculpt-provenance.json", "model.sig"  # made of the manifest later

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".npy")
TOKENIZER_STEMS = (
    "tokenizer",
    "special_tokens_map",
    "added_tokens",
    "vocab",
    "merges",
    "chat_template",
    "spiece",
    "tokenizer_config",
)
PROCESSOR_STEMS = ("preprocessor_config", "processor_config", "video_preprocessor_config")
Kind = Literal["tokenizer", "template", "processor", "weights", "code", "other"]

TRAINING_FOLDERS = (
    *("checkpoint-*", "global_step*", "runs", "wandb", "mlruns", "tensorboard", "pytorch_model_fsdp_*", "optimizer_*"),
    *("lightning_logs", "logs", "__pycache__"),
)
TRAINING_FILES = (
    *("optimizer*.pt", "optimizer*.bin", "scheduler*.pt", "scheduler*.bin", "scaler.pt", "rng_state*.pth"),
    *("random_states_*.pkl", "training_args.bin", "trainer_state.json", "trainer_log.jsonl", "*.distcp"),
    *("all_results.json", "train_results.json", "eval_results.json", "training_*.png", "latest", "zero_to_fp32.py"),
    *("latest_checkpointed_iteration.txt", "sampler*.bin", "dl_state_dict*.bin", "custom_checkpoint_*.pkl"),
    *("*_world_size_*_rank_*.pt", "*_optim_states.pt", "*_model_states.pt"),
)
OTHER_FORM_FOLDERS = ("onnx", "openvino", "coreml", "gguf", "original")
OTHER_FORM_FILES = (
    *("*.onnx", "*.onnx_data", "*.onnx.data", "*.gguf", "*.h5", "*.msgpack", "*.ot", "*.tflite", "*.mlmodel", "*.pb"),
    "consolidated*",
)
# Weights under the names that loaders look for, in another file than was read.
SAME_WEIGHTS = re.compile(
    r"(pytorch_model|model|pytorch_model_fsdp|diffusion_pytorch_model)([.-](\d+-of-\d+|fp16|bf16|fp32|non_ema))*"
    r"\.(bin|safetensors)(\.index(\.\w+)?\.json)?"
)
ARCHIVES = ("*.zip", "*.tar", "*.tar.*", "*.tgz", "*.7z", "*.rar")


# What is nobody's business but the trainer's, by names in lower case: an output is there to be published.
PRIVATE = (
    *(".*", "*.pem", "*.key", "*.p12", "*.pfx", "*.kdbx", "*.env", "id_rsa*", "id_ecdsa*", "id_ed25519*", "*.ppk"),
    *(
        "*credential*",
        "*secret*",
        "*password*",
        "token",
        "token.txt",
        "*_token",
        "*_token.txt",
        "*api_key*",
        "kubeconfig",
    ),
    *("*.log", "*.out", "*.err", "*tfevents*", "*history", "core", "core.*", "*.swp", "*.bak", "*~"),
)


def is_private(name: Path) -> bool:
    """Return whether a file, named within its folder, is hidden, a credential or a log; it is never copied."""
    return any(fnmatchcase(part.lower(), pattern) for part in name.parts for pattern in PRIVATE)


def kind_of(name: Path) -> Kind:
    """Return what a file is to a model, by its name."""
    stem = name.name.partition(".")[0]
    if stem == "chat_template":
        return "template"
    if stem in TOKENIZER_STEMS:
        return "tokenizer"
    if stem in PROCESSOR_STEMS:
        return "processor"
    if name.suffix in WEIGHT_SUFFIXES:
        return "weights"
    return "code" if name.suffix == ".py" else "other"


def why_left(name: Path, *, is_folder: bool) -> str | None:
    """Return why a file or folder is never copied, or None."""

    def among(patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(name.name, pattern) for pattern in patterns)

    if is_private(Path(name.name)):
        return "hidden, a credential or a log"
    if among(TRAINING_FOLDERS if is_folder else TRAINING_FILES):
        return "left by training"
    if among(OTHER_FORM_FOLDERS if is_folder else OTHER_FORM_FILES):
        return "another form of the weights, which are no longer these"
    if is_folder:
        return None
    if len(name.parts) == 1 and SAME_WEIGHTS.fullmatch(name.name):
        return "other weights than those that were read"
    if len(name.parts) == 1 and name.name.startswith(("adapter_config.", "adapter_model.")):
        return "of an adapter that was not read"
    if among(ARCHIVES):
        return "an archive"
    return "replaced by a card of the output" if name == Path("README.md") else None
