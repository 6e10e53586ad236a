"""What lies beside the weights: configuration, tokenizer, processor and code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import CheckpointError, os_error
from .source import Source

OWN_MARK = "sculpt-manifest.json"  # only a folder that holds it is ever replaced
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
# What training saves beside an adapter that belongs to the model.
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


def files_beside_weights(folder: Path) -> dict[Path, Path]:
    """Return every file, by its name within the folder, but weights, indexes, private files and an earlier manifest.

    Raises:
        CheckpointError: One is a link out of the folder.
    """

    def is_beside(file: Path) -> bool:
        is_weight = file.suffix in WEIGHT_SUFFIXES or file.name.endswith(".index.json")
        return not is_weight and file.name != OWN_MARK

    return own_files(folder, filter(is_beside, folder.rglob("*")))


def files_of_tokenizer(folder: Path) -> dict[Path, Path]:
    """Return the files of a tokenizer or processor, by name.

    Raises:
        CheckpointError: One is a link out of the folder.
    """
    stems = (*TOKENIZER_STEMS, *PROCESSOR_STEMS)
    return own_files(folder, (file for file in folder.iterdir() if file.name.partition(".")[0] in stems))


def copy_companions(source: Source, folder: Path) -> None:
    """Copy what a model is shipped with, beside its weights; its configuration as the source has it."""
    for name, file in source.companions().items():
        target = folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            if name == Path("config.json") and source.base is not None and source.config != source.base.config:
                target.write_text(json.dumps(source.config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise os_error(error, target) from error
