"""What lies beside the weights: configuration, tokenizer, processor, code, further weights; and what is none of it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from ..errors import CheckpointError

OWN_MARK = "sculpt-manifest.json"  # only a folder that holds it is ever replaced
OWN_TENSORS = "sculpt-tensors.jsonl.gz"  # what the manifest says of each tensor, where there are very many
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
    r"(pytorch_model|model|pytorch_model_fsdp)([.-](\d+-of-\d+|fp16|bf16|fp32|non_ema))*\.(bin|safetensors)(\.index\.json)?"
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


def lies_inside(file: Path, folder: Path) -> bool:
    """Return whether a file lies in a folder once links are followed.

    The hub's cache is a folder of links: what a snapshot holds lies among the `blobs` of the same model.
    """
    here = folder.resolve()
    roots = [here, here.parents[1] / "blobs"] if here.parent.name == "snapshots" else [here]
    return any(root in file.resolve().parents for root in roots)


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A file or folder beside a model's weights.

    Attributes:
        name: Within the model's folder.
        kind: What it is to the model.
        left: Why it is never copied, in words; None where it may be. A folder that is left stands for all within.
    """

    name: Path
    file: Path
    kind: Kind
    left: str | None = None


def look_beside(folder: Path, read: Collection[Path]) -> list[Companion]:
    """Return all that lies in a folder beside the files that are read as the model's tensors, by name.

    Raises:
        CheckpointError: Something that could be copied is a link out of the folder: it may be anything.
    """
    weights = {file.resolve() for file in read}
    found = [
        _companion(file.relative_to(folder), file)
        for file in _walk(folder)
        if file.resolve() not in weights and file.name not in (OWN_MARK, OWN_TENSORS)
    ]
    for companion in found:
        if companion.left is None and not lies_inside(companion.file, folder):
            raise CheckpointError(
                f"`{companion.file}` is a link out of its folder, to `{companion.file.resolve()}`",
                hint="copy the file there if it belongs to the model, else remove the link",
            )
    return found


def further_weights(folder: Path, read: Collection[Path]) -> list[Path]:
    """Return the weight files in a folder itself, beside those that are read, that are no other form of them."""
    return [
        found.file
        for found in look_beside(folder, read)
        if found.kind == "weights" and found.left is None and len(found.name.parts) == 1
    ]


def _walk(folder: Path) -> Iterator[Path]:
    """Yield files in order, and folders that are left as they are."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.is_dir() or _why_left(Path(entry.name), is_folder=True) is not None or entry.is_symlink():
                yield Path(entry.path)
            else:
                yield from _walk(Path(entry.path))


def _companion(name: Path, file: Path) -> Companion:
    left = _why_left(name, is_folder=file.is_dir()) or (None if file.is_file() else "no file")
    return Companion(name=name, file=file, kind=kind_of(name), left=left)


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


def _why_left(name: Path, *, is_folder: bool) -> str | None:
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


def own_files(folder: Path, files: Iterable[Path]) -> dict[Path, Path]:
    """Return the files among those of a folder, by name within it, but for private ones.

    Raises:
        CheckpointError: One is a link out of the folder: what it shows is not the model's, and may be anything.
    """
    found = {}
    for file in sorted(files):
        name = file.relative_to(folder)
        if not file.is_file() or is_private(name):
            continue
        if not lies_inside(file, folder):
            raise CheckpointError(
                f"`{file}` is a link out of its folder, to `{file.resolve()}`",
                hint="copy the file there if it belongs to the model, else remove the link",
            )
        found[name] = file
    return found


def files_of_tokenizer(folder: Path) -> dict[Path, Path]:
    """Return the files of a tokenizer or processor, by name.

    Raises:
        CheckpointError: One is a link out of the folder.
    """
    stems = (*TOKENIZER_STEMS, *PROCESSOR_STEMS)
    return own_files(folder, (file for file in folder.iterdir() if file.name.partition(".")[0] in stems))


def left_by_training(folder: Path | None) -> str | None:
    """Return the name of a file that training left in a folder, or None; a model in memory has no folder."""
    if folder is None or not folder.is_dir():
        return None
    names = sorted(file.name for file in folder.iterdir())
    return next((name for name in names if any(fnmatchcase(name, pattern) for pattern in TRAINING_FILES)), None)
