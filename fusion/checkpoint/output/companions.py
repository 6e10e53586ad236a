"""What lies beside the weights: configuration, tokenizer, processor and code."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...errors import os_error
from ..reader import Checkpoint
from .writer import OWN_MARK

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


def copy_companions(source: Checkpoint, folder: Path) -> None:
    """Copy every file that is neither weights nor an index, hidden nor the manifest of an earlier fuse.

    An adapter's are its base's, but for a tokenizer or processor of its own.
    """
    if source.folder is not None:
        for file in sorted(source.folder.rglob("*")):
            relative = file.relative_to(source.folder)
            if not file.is_file() or any(part.startswith(".") for part in relative.parts):
                continue
            if file.suffix in WEIGHT_SUFFIXES or file.name.endswith(".index.json") or file.name == OWN_MARK:
                continue
            _copy(file, folder / relative)
    if source.adapter is not None:
        for file in sorted(source.path.iterdir()):
            if file.is_file() and file.name.partition(".")[0] in (*TOKENIZER_STEMS, *PROCESSOR_STEMS):
                _copy(file, folder / file.name)


def _copy(file: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    except OSError as error:
        raise os_error(error, target) from error
