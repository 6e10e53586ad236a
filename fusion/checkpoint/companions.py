"""What lies beside the weights: configuration, tokenizer, processor and code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..errors import os_error
from .json_file import read_json
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


def files_beside_weights(folder: Path) -> dict[Path, Path]:
    """Return every file, by its name within the folder, but weights, indexes, hidden files and an earlier manifest."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if not file.is_file() or any(part.startswith(".") for part in name.parts):
            continue
        if file.suffix in WEIGHT_SUFFIXES or file.name.endswith(".index.json") or file.name == OWN_MARK:
            continue
        found[name] = file
    return found


def files_of_tokenizer(folder: Path) -> dict[Path, Path]:
    """Return the files of a tokenizer or processor, by name."""
    stems = (*TOKENIZER_STEMS, *PROCESSOR_STEMS)
    files = (file for file in sorted(folder.iterdir()) if file.is_file() and file.name.partition(".")[0] in stems)
    return {Path(file.name): file for file in files}


def copy_companions(source: Source, folder: Path) -> None:
    """Copy what a model is shipped with, beside its weights; its configuration as the source has it."""
    for name, file in source.companions().items():
        target = folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            if name == Path("config.json") and source.config is not None and source.config != read_json(file):
                target.write_text(json.dumps(source.config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise os_error(error, target) from error
